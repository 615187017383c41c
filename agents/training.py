"""Trains a Stable-Baselines3 algorithm on a suite: progress, TensorBoard, checkpoints, resuming, and a bundle."""

import copy
import json
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from torch import nn
from tqdm import tqdm

from loopwright.agents.bundle import Bundle, save_bundle
from loopwright.agents.competitors import starting_plan
from loopwright.envs.episodes import EpisodeSettings
from loopwright.envs.knobs import KnobSet
from loopwright.envs.sb3 import SB3VecEnv
from loopwright.envs.threads import compute_threads
from loopwright.envs.training_loop import TrainingLoopVectorEnv
from loopwright.inner_tasks.errors import LoopwrightError, UnknownNameError
from loopwright.inner_tasks.extras import import_extra

ALGORITHMS = ("PPO", "A2C", "SAC", "TD3", "DDPG")
CONTRIB_ALGORITHMS = ("TRPO", "TQC", "ARS")
BOX_ONLY = ("SAC", "TD3", "DDPG", "TQC", "ARS")
GAMMA = 0.995
# What ``loopwright train --preset`` stands for: trainings whose agents are judged in docs/results.
PRESETS: dict[str, dict[str, Any]] = {
    knobs: {"suite": "train", "knobs": knobs, "steps": 600_000}
    for knobs in ("all", "core", "lr-momentum", "clip", "loop", "lr")
}
STANDING_STILL = 2.0  # added to the logit of the action that leaves a knob alone, before training


@dataclass(frozen=True)
class TrainingConfig:
    """What a training is made of. Raises ``LoopwrightError`` for values that cannot be."""

    algorithm: str = "PPO"
    """PPO, A2C, SAC, TD3, DDPG; TRPO, TQC, ARS with sb3-contrib."""
    steps: int = 500_000
    """Decisions in all."""
    lanes: int = 128
    """Inner runs side by side."""
    suite: str = "train"
    """Suite to draw tasks from."""
    knobs: str = "core"
    """Knob set, or knob names joined by "+"."""
    action: str = ""
    """discrete or box; empty takes what the algorithm supports."""
    start: str = "tuned"
    """Starting plan: the "tuned" constant, or PyTorch's "default" AdamW settings."""
    plan_spread: float = 0.0
    """Episodes start with the learning rate times 10^U(-spread, spread), lest the policy rely on its start."""
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
        if self.algorithm not in (*ALGORITHMS, *CONTRIB_ALGORITHMS):
            raise UnknownNameError("algorithm", self.algorithm, [*ALGORITHMS, *CONTRIB_ALGORITHMS])
        for name in ("steps", "lanes", "checkpoint_every", "threads"):
            if getattr(self, name) < 1:
                raise LoopwrightError(f"{name} must be 1 or more, got {getattr(self, name)}")
        starting_plan(self.start)  # raises for an unknown name
        if self.algorithm in BOX_ONLY and self.action == "discrete":
            raise LoopwrightError(f"{self.algorithm} needs action='box', got 'discrete'")

    @property
    def action_kind(self) -> str:
        return self.action or ("box" if self.algorithm in BOX_ONLY else "discrete")


def algorithm_class(name: str) -> type[BaseAlgorithm]:
    """The class of an algorithm. Raises ``LoopwrightError`` naming the extra when sb3-contrib is missing."""
    module = import_extra("sb3_contrib", "contrib") if name in CONTRIB_ALGORITHMS else stable_baselines3
    found: type[BaseAlgorithm] = getattr(module, name)
    return found


def default_options(config: TrainingConfig) -> dict[str, Any]:
    """Settings that work here where the library's own do not: short discounts would hide the end of a run."""
    if config.algorithm == "PPO":
        # 48 decisions a rollout see about half an episode; large minibatches, since returns are noisy.
        return {
            "n_steps": 48,
            "batch_size": min(2048, 48 * config.lanes),
            "n_epochs": 10,
            "learning_rate": [1.5e-3, 1e-4],
            "ent_coef": 0.001,
            "gae_lambda": 0.9,
            "policy_kwargs": {"net_arch": [128, 128]},
        }
    if config.algorithm == "A2C":
        return {"n_steps": 16, "learning_rate": 7e-4, "ent_coef": 0.003, "policy_kwargs": {"net_arch": [128, 128]}}
    if config.algorithm in ("SAC", "TQC"):
        return {"learning_starts": 10 * config.lanes, "batch_size": 512, "gradient_steps": 4,
                "policy_kwargs": {"net_arch": [128, 128]}}  # fmt: skip
    return {}


def prefer_standing_still(model: BaseAlgorithm, knobs: KnobSet) -> None:
    """Let a discrete policy begin by mostly leaving the plan alone, rather than by walking every knob at random.

    A random walk of the knobs ruins nearly every run, and there is little to learn from ruins.
    """
    action_net = getattr(model.policy, "action_net", None)
    if knobs.action == "discrete" and isinstance(action_net, nn.Linear):
        start = 0
        with torch.no_grad():
            for knob in knobs.knobs:
                action_net.bias[start + knob.still] += STANDING_STILL
                start += len(knob.steps)


class TrainingCallback(BaseCallback):
    """Progress bar, episode statistics for TensorBoard, and checkpoints."""

    def __init__(self, folder: Path, config: TrainingConfig, show: bool) -> None:
        super().__init__()
        self.folder, self.config, self.show = folder, config, show
        self._recent: deque[tuple[float, bool, float]] = deque(maxlen=400)
        self._returns = np.zeros(config.lanes)
        self._bar: Any = None
        self._next_checkpoint = 0

    def _on_training_start(self) -> None:
        self._bar = tqdm(
            total=self.config.steps, initial=self.num_timesteps, unit="decision", unit_scale=True,
            desc=f"train {self.config.algorithm}", disable=not self.show,
        )  # fmt: skip
        self._next_checkpoint = self.num_timesteps + self.config.checkpoint_every

    def _on_step(self) -> bool:
        # ARS evaluates whole policies, and shows its callbacks no step.
        self._returns += self.locals.get("rewards", 0.0)
        for i in np.flatnonzero(self.locals.get("dones", ())):
            info = self.locals["infos"][i]
            self._recent.append((self._returns[i], info["outcome"] == "hit", info["cost"] / info["budget"]))
            self._returns[i] = 0.0
        self._bar.update(self.num_timesteps - self._bar.n)
        if self.num_timesteps >= self._next_checkpoint:
            self.checkpoint()
            self._next_checkpoint += self.config.checkpoint_every
        return True

    def _on_rollout_end(self) -> None:
        if self._recent:
            returns, hits, shares = np.array(self._recent, dtype=float).T
            self.logger.record("episode/return", returns.mean())
            self.logger.record("episode/hit_rate", hits.mean())
            self.logger.record("episode/budget_share", shares.mean())
            self._bar.set_postfix_str(f"return {returns.mean():.3f} hits {hits.mean():.0%}", refresh=False)

    def _on_training_end(self) -> None:
        self._bar.close()

    def checkpoint(self) -> None:
        """Write the agent beside the old one and swap them, so that a killed process leaves a whole checkpoint."""
        new = self.folder / "checkpoint.new.zip"
        self.model.save(new)
        new.replace(self.folder / "checkpoint.zip")


def train(
    config: TrainingConfig,
    folder: Path,
    *,
    resume: bool = False,
    show_progress: bool = True,
    settings: EpisodeSettings | None = None,
) -> Bundle:
    """Train, and save ``policy.safetensors`` in ``folder``. Interrupted with Ctrl-C, it leaves a checkpoint.

    Raises:
        LoopwrightError: ``resume`` without a checkpoint, or with one of another configuration; a folder that already
            holds a training when not resuming.
    """
    checkpoint, described = folder / "checkpoint.zip", folder / "training.json"
    if resume:
        if not checkpoint.exists():
            raise LoopwrightError(f"nothing to resume: {checkpoint} does not exist")
        before = json.loads(described.read_text())
        if {**before, "steps": 0} != {**json.loads(json.dumps(asdict(config))), "steps": 0}:
            raise LoopwrightError(f"{described} was written for another configuration: {before}")
    elif checkpoint.exists() or (folder / "policy.safetensors").exists():
        raise LoopwrightError(f"{folder} already holds a training; resume it, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    described.write_text(json.dumps(asdict(config), indent=1))

    plan = starting_plan(config.start)
    discount = 1.0 if config.algorithm == "ARS" else float(config.options.get("gamma", GAMMA))
    settings = replace(settings or EpisodeSettings(compile=config.compile), discount=discount)
    if settings.compile and show_progress:
        tqdm.write("compiling the inner loop (half a minute, less the next time)")
    envs = SB3VecEnv(
        TrainingLoopVectorEnv(
            config.lanes,
            suite=config.suite,
            knobs=config.knobs,
            action=config.action_kind,
            plan=plan,
            plan_spread=config.plan_spread,
            settings=settings,
            autoreset_mode="SameStep",
        )
    )
    make: Callable[..., BaseAlgorithm] = algorithm_class(config.algorithm)
    if resume:
        model = algorithm_class(config.algorithm).load(checkpoint, env=envs)
        # The tasks of the part already done are not drawn again: the stream goes on from a seed of its own.
        envs.seed(config.seed + model.num_timesteps)
    else:
        own = {"device": "cpu"} if config.algorithm == "ARS" else {"device": "cpu", "gamma": GAMMA}
        # A copy: some algorithms write into the settings of their policy.
        options = {**own, **default_options(config), **copy.deepcopy(config.options)}
        if isinstance(options.get("learning_rate"), list):
            first, last = options["learning_rate"]
            options["learning_rate"] = LinearSchedule(first, last, 1.0)
        model = make("MlpPolicy", envs, seed=config.seed, tensorboard_log=str(folder / "tensorboard"), **options)
        prefer_standing_still(model, KnobSet(config.knobs, config.action_kind))
    callback = TrainingCallback(folder, config, show_progress)
    left = config.steps - model.num_timesteps
    try:
        if left > 0:
            with compute_threads(config.threads):
                model.learn(left, callback=callback, log_interval=4, reset_num_timesteps=False, tb_log_name="agent")
    except KeyboardInterrupt:
        callback.checkpoint()
        raise
    callback.init_callback(model)
    callback.checkpoint()
    knobs = KnobSet(config.knobs, config.action_kind)
    made = {name: value for name, value in asdict(settings).items() if name not in ("compile", "device")}
    trained = {"seed": config.seed, "suite": config.suite, "plan_spread": config.plan_spread,
               "options": json.loads(json.dumps(config.options)), "settings": made}  # fmt: skip
    bundle = Bundle.from_model(model, knobs, plan, trained)
    save_bundle(bundle, folder / "policy.safetensors")
    return bundle
