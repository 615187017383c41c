"""TrainingConfig: what a training is made of, and what works where nothing is said."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm

from loopwright.agents.controllers.tuned import get_starting_plan
from loopwright.envs.episode.reward import find_reward
from loopwright.envs.loop.checks import MOST_LANES, MOST_SEED, MOST_THREADS, check_whole
from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.envs.loop.extras import import_extra
from loopwright.envs.loop.knob_set import ACTION_KINDS
from loopwright.envs.loop.observation import OBSERVATION_NAMES
from loopwright.envs.loop.untrusted import strict

ALGORITHMS = ("PPO", "A2C", "SAC", "TD3", "DDPG", "DQN")
CONTRIB_ALGORITHMS = ("MaskablePPO", "RecurrentPPO", "TRPO", "TQC", "ARS", "QRDQN")
# The kinds of actions an algorithm can take, the one that it gets where nothing is said first; of others all.
BOX_ONLY, FLAT_ONLY = ("SAC", "TD3", "DDPG", "TQC", "ARS"), ("DQN", "QRDQN")
KINDS = {
    **dict.fromkeys(BOX_ONLY, ("box",)),
    **dict.fromkeys(FLAT_ONLY, ("flat",)),
    "MaskablePPO": ("discrete", "flat"),
}
BEGINNERS = ("PPO", "MaskablePPO", "A2C", "TRPO")  # that can begin with a saved policy: on-policy, without memory
# Algorithms of these libraries whose policies no bundle can hold.
REFUSED = {
    "CrossQ": "its actor has batch normalisation, and a bundle linear layers",
}
GAMMA = 0.995
# What ``loopwright train --preset`` stands for: the trainings of shipped policies, and of what they are judged beside.
_LONG: dict[str, Any] = {"suite": "train", "steps": 2_000_000, "lanes": 512, "options": {"n_steps": 16}}
_FIXED_RATE: dict[str, Any] = {**_LONG, "rate_spread": 0.5, "fields_spread": 0.1}  # there is no knob for it
# What torch's AdamW has, and averaged weights; some runs are as a user's loop has them.
_OF_ADAMW = "lr+momentum+second_momentum+weight_decay+average"
_VARIED: dict[str, Any] = {
    **_LONG, "suite": "varied", "start": "averaged AdamW", "open_runs": 0.25, "plain_runs": 0.25, "steps": 1_000_000,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    **{knobs: {**_LONG, "knobs": knobs} for knobs in ("core", "lr")},
    "adamw": {**_VARIED, "knobs": _OF_ADAMW},
    "rules": {**_VARIED, "knobs": f"{_OF_ADAMW}+optimizer"},
    # From the best constant of their own knobs: what is left to win is what steering them wins.
    "lr-momentum": {
        **_LONG,
        "knobs": "lr-momentum",
        "suite": "varied",
        "start": "AdamW",
        "rate_spread": 1.0,
        "fields_spread": 0.1,
        "steps": 1_000_000,
    },
    "clip": {**_FIXED_RATE, "knobs": "clip", "suite": "spikes", "start": "clipped SGD", "steps": 600_000},
    "loop": {**_FIXED_RATE, "knobs": "loop", "start": "constant loop", "steps": 700_000},
    "blind": {**_LONG, "knobs": "core", "hidden": ("feedback",)},
    "lr-clip-average": {
        **_LONG,
        "knobs": "lr+clip+average",
        "steps": 600_000,
        "plain_runs": 1.0,
        "fields_spread": 0.5,
        "open_runs": 1.0,
    },
}
# What can be hidden by one name: all but the clock of a run, what is known of it beforehand, what updates cost.
CLOCK = ("decisions", "budget_given", "budget_left", "budget_passes")
HIDDEN_GROUPS: dict[str, tuple[str, ...]] = {
    "feedback": tuple(name for name in OBSERVATION_NAMES if name not in CLOCK),
    "context": ("size_given", "parameters", "samples", "passes", "budget_passes"),
    "prices": ("prices_given", "price_*"),
}


@strict
@dataclass(frozen=True)
class TrainingConfig:
    """What a training is made of. Raises ``LoopwrightError`` for values that cannot be."""

    algorithm: str = "PPO"
    """PPO, A2C, SAC, TD3, DDPG, DQN; MaskablePPO, RecurrentPPO, TRPO, TQC, ARS, QRDQN with sb3-contrib."""
    steps: int = 500_000
    """Decisions in all."""
    lanes: int = 128
    """Inner runs side by side."""
    suite: str = "train"
    """Suite to draw tasks from."""
    knobs: str = "core"
    """Knob set, or knob names joined by "+"."""
    action: str = ""
    """discrete, box or flat; empty takes what the algorithm supports."""
    start: str = "tuned"
    """Starting plan: the "tuned" constant, PyTorch's "default" AdamW, or a tuned competitor's ("averaged AdamW")."""
    rate_spread: float = 1.5
    """Episodes start with the learning rate times 10^U(-spread, spread), lest the policy rely on its start."""
    fields_spread: float = 0.3
    """Chance with which an episode starts with another optimizer, momentum, batch, ... than the starting plan's; with
    another optimizer only if there is a knob to change it."""
    reward: str = "log-progress"
    """What it is rewarded for: see the environment's page."""
    prices: str = "drawn"
    """What updates cost: "gradients" (nothing), "measured", or "drawn" for every episode, for the policy to read."""
    withheld: float = 0.1
    """Chance with which each source is withheld from the policy: control split, target, budget, size, prices."""
    open_runs: float = 0.0
    """Chance of an open run: no target, a budget of a quarter of C* to C*, rewarded by how far it comes."""
    plain_runs: float = 0.0
    """Chance of a plain run: it starts around torch's AdamW, and the optimizer and the batch size stay."""
    hidden: tuple[str, ...] = ()
    """Features that the policy never sees, for ablations: names, beginnings of names with a "*" at the end, or
    "feedback" (all but budget and decisions), "context" (sizes, passes), "prices"."""
    begin_with: str = ""
    """Saved policy, or name of one that comes along, that the training goes on from; knobs may be others."""
    seed: int = 0
    """Of the agent and of the tasks it draws."""
    checkpoint_every: int = 100_000
    """Decisions between checkpoints."""
    threads: int = 1
    """That compute. Two are a third faster on two idle cores, and three times as slow where one of them is busy."""
    compile: bool = True
    """Fuse the inner loop with torch.compile; needs a C++ compiler."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the algorithm, as JSON values; a list of two learning rates is a linear schedule."""

    def __post_init__(self) -> None:
        if self.algorithm in REFUSED:
            raise LoopwrightError(f"{self.algorithm} cannot be trained here: {REFUSED[self.algorithm]}")
        if self.algorithm not in (*ALGORITHMS, *CONTRIB_ALGORITHMS):
            raise UnknownNameError("algorithm", self.algorithm, [*ALGORITHMS, *CONTRIB_ALGORITHMS])
        if self.begin_with and self.algorithm not in BEGINNERS:
            accepted = ", ".join(BEGINNERS)
            raise LoopwrightError(f"{self.algorithm} cannot begin with a saved policy; accepted are {accepted}")
        check_whole("steps", self.steps, 1)
        check_whole("lanes", self.lanes, 1, MOST_LANES)
        check_whole("checkpoint_every", self.checkpoint_every, 1)
        check_whole("threads", self.threads, 1, MOST_THREADS)
        check_whole("seed", self.seed, 0, MOST_SEED)
        get_starting_plan(self.start)  # raises for an unknown name
        find_hidden(self.hidden)
        find_reward(self.reward)
        kinds = KINDS.get(self.algorithm, ACTION_KINDS)
        if self.action and self.action not in kinds:
            raise LoopwrightError(f"{self.algorithm} needs action={' or '.join(map(repr, kinds))}, got {self.action!r}")

    @property
    def action_kind(self) -> str:
        return self.action or KINDS.get(self.algorithm, ACTION_KINDS)[0]


def find_hidden(patterns: Sequence[str]) -> list[int]:
    """The positions in an observation of the features that are hidden. Raises ``UnknownNameError`` where none is."""
    found: set[int] = set()
    for pattern in (name for given in patterns for name in HIDDEN_GROUPS.get(given, (given,))):
        stem, any_end = pattern.removesuffix("*"), pattern.endswith("*")
        own = [i for i, name in enumerate(OBSERVATION_NAMES) if name == stem or (any_end and name.startswith(stem))]
        if not own:
            raise UnknownNameError("feature", pattern, [*HIDDEN_GROUPS, *OBSERVATION_NAMES])
        found.update(own)
    return sorted(found)


def find_algorithm(name: str) -> type[BaseAlgorithm]:
    """The class of an algorithm. Raises ``LoopwrightError`` naming the extra when sb3-contrib is missing."""
    module = import_extra("sb3_contrib", "contrib") if name in CONTRIB_ALGORITHMS else stable_baselines3
    found: type[BaseAlgorithm] = getattr(module, name)
    return found


def get_default_options(config: TrainingConfig) -> dict[str, Any]:
    """Settings that work here where the library's own do not: short discounts would hide the end of a run."""
    if config.algorithm in ("PPO", "MaskablePPO", "RecurrentPPO"):
        # 48 decisions a rollout see about half an episode; large minibatches, since returns are noisy.
        remembering = {"lstm_hidden_size": 128} if config.algorithm == "RecurrentPPO" else {}
        return {
            "n_steps": 48,
            "batch_size": min(2048, 48 * config.lanes),
            "n_epochs": 10,
            "learning_rate": [1.5e-3, 1e-4],
            "ent_coef": 0.001,
            "gae_lambda": 0.9,
            "policy_kwargs": {"net_arch": [128, 128], **remembering},
        }
    if config.algorithm == "A2C":
        return {"n_steps": 16, "learning_rate": 7e-4, "ent_coef": 0.003, "policy_kwargs": {"net_arch": [128, 128]}}
    if config.algorithm in ("SAC", "TQC"):
        return {"learning_starts": 10 * config.lanes, "batch_size": 512, "gradient_steps": 4,
                "policy_kwargs": {"net_arch": [128, 128]}}  # fmt: skip
    if config.algorithm in FLAT_ONLY:
        return {"learning_starts": 10 * config.lanes, "batch_size": 512, "train_freq": 1, "gradient_steps": 4,
                "policy_kwargs": {"net_arch": [128, 128]}}  # fmt: skip
    return {}
