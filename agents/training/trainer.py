"""Trains a Stable-Baselines3 algorithm on a suite: progress, TensorBoard, checkpoints, resuming, and a bundle."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from torch import nn
from tqdm import tqdm

from loopwright.agents.controllers.bundle import load_policy, save_policy
from loopwright.agents.controllers.other_knobs import find_logit
from loopwright.agents.controllers.policy import Policy
from loopwright.agents.controllers.tuned import get_starting_plan
from loopwright.agents.training.callback import TrainingCallback
from loopwright.agents.training.checkpoint import CHECKPOINT, restore_checkpoint
from loopwright.agents.training.config import GAMMA, TrainingConfig, find_algorithm, find_hidden, get_default_options
from loopwright.agents.training.extraction import extract_policy
from loopwright.agents.training.full_disk import tell_in_a_line
from loopwright.agents.training.warm_start import shape_as, start_from
from loopwright.envs.engine.threads import limit_threads
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.errors import CheckpointError, LoopwrightError
from loopwright.envs.loop.holding import holding_folder
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.storage import write_whole
from loopwright.envs.loop.untrusted import Reader
from loopwright.envs.sampling import Spread
from loopwright.envs.sb3 import SB3VecEnv
from loopwright.envs.vector import TrainingLoopVectorEnv

_DESCRIBED = Reader[TrainingConfig](TrainingConfig)
STANDING_STILL = 0.9  # chance of the action that leaves a knob alone, before training


def train(
    config: TrainingConfig,
    folder: Path,
    *,
    resume: bool = False,
    show_progress: bool = True,
    settings: EpisodeSettings | None = None,
    callback: BaseCallback | Sequence[BaseCallback] = (),
) -> Policy:
    """Train, and save ``policy.safetensors`` in ``folder``. Interrupted with Ctrl-C, it leaves a checkpoint.

    ``callback`` is one of Stable-Baselines3's, or several. One that stops the training, by giving False, ends it there:
    the policy is saved as it is then.

    Raises:
        LoopwrightError: ``resume`` without a checkpoint, or with one of another configuration; a folder that already
            holds a training when not resuming, or that another process works in.
        CheckpointError: ``resume`` with a checkpoint that is damaged, altered, or an older version's.
    """
    with holding_folder(folder):
        own = [callback] if isinstance(callback, BaseCallback) else list(callback)
        return _train(config, folder, resume, show_progress, settings, own)


def _train(
    config: TrainingConfig, folder: Path, resume: bool, show_progress: bool, settings: EpisodeSettings | None,
    others: list[BaseCallback],
) -> Policy:  # fmt: skip
    _claim(folder, config, resume)
    tell_in_a_line()
    discount = 1.0 if config.algorithm == "ARS" else float(config.options.get("gamma", GAMMA))
    settings = replace(
        settings or EpisodeSettings(compile=config.compile), discount=discount, prices=config.prices,
        reward=config.reward,
    )  # fmt: skip
    if settings.compile and show_progress:
        tqdm.write("compiling the inner loop (half a minute, less the next time)")
    envs = _make_envs(config, settings)
    begun = {"begun_with": load_policy(config.begin_with).fingerprint} if config.begin_with else {}
    model = _load_model(config, folder, envs) if resume else _make_model(config, folder, envs)
    callback = TrainingCallback(folder, config, show_progress)
    callback.init_callback(model)
    left = config.steps - model.num_timesteps
    try:
        if left > 0:
            every = 1 if isinstance(model, OnPolicyAlgorithm) else 4  # rollouts, and else episodes
            with limit_threads(config.threads):
                model.learn(
                    left, callback=[callback, *others], log_interval=every, reset_num_timesteps=False,
                    tb_log_name="agent",
                )  # fmt: skip
    except KeyboardInterrupt:
        callback.on_training_end()
        callback.checkpoint()
        raise
    callback.checkpoint()
    made = {name: value for name, value in settings.as_json().items() if name not in ("compile", "device")}
    trained = {"seed": config.seed, "suite": config.suite, "rate_spread": config.rate_spread,
               "fields_spread": config.fields_spread, "withheld": config.withheld,
               "open_runs": config.open_runs, "plain_runs": config.plain_runs, "hidden": list(config.hidden),
               "options": json.loads(json.dumps(config.options)), "settings": made, **begun}  # fmt: skip
    knobs = KnobSet(config.knobs, config.action_kind)
    hidden = find_hidden(config.hidden)
    policy = extract_policy(model, knobs, get_starting_plan(config.start), trained, hidden)
    save_policy(policy, folder / "policy.safetensors")
    return policy


def _claim(folder: Path, config: TrainingConfig, resume: bool) -> None:
    """Say in ``folder`` what is trained there. Raises ``LoopwrightError`` where it does not fit what is there."""
    checkpoint, described, old = (folder / name for name in (CHECKPOINT, "training.json", "checkpoint.zip"))
    if resume:
        if not checkpoint.exists() and old.exists():
            raise CheckpointError(
                f"{old} was written by an older version; it holds pickles, which can run anything, and is not opened: "
                f"train again in another folder"
            )
        if not checkpoint.exists():
            raise LoopwrightError(f"nothing to resume: {checkpoint} does not exist")
        before, now = (asdict(replace(own, steps=config.steps)) for own in (_DESCRIBED.read(described), config))
        differs = [name for name in now if json.dumps(before[name]) != json.dumps(now[name])]
        if differs:
            raise LoopwrightError(f"{described} was written for another configuration ({', '.join(differs)} differ)")
    elif any(path.exists() for path in (checkpoint, old, folder / "policy.safetensors")):
        raise LoopwrightError(f"{folder} already holds a training; resume it, or choose another folder")
    write_whole(described, json.dumps(asdict(config), indent=1))


def _make_envs(config: TrainingConfig, settings: EpisodeSettings) -> SB3VecEnv:
    # A policy that cannot leave a rule is not put on others; but of plain runs every user has their own.
    stays = not config.plain_runs and "optimizer" not in {knob.field for knob in KnobSet(config.knobs).knobs}
    spread = Spread(config.rate_spread, config.fields_spread, kept=("optimizer",) if stays else ())
    return SB3VecEnv(
        TrainingLoopVectorEnv(
            config.lanes, suite=config.suite, knobs=config.knobs, action=config.action_kind,
            plan=get_starting_plan(config.start), spread=spread,
            withheld=config.withheld, open_runs=config.open_runs, plain_runs=config.plain_runs,
            settings=settings, autoreset_mode="SameStep",
        ),
        find_hidden(config.hidden),
    )  # fmt: skip


def _load_model(config: TrainingConfig, folder: Path, envs: SB3VecEnv) -> BaseAlgorithm:
    model = _make_model(config, folder, envs)
    restore_checkpoint(model, folder / CHECKPOINT)
    # The tasks of the part already done are not drawn again: the stream goes on from a seed of its own.
    envs.seed(config.seed + model.num_timesteps)
    return model


def _make_model(config: TrainingConfig, folder: Path, envs: SB3VecEnv) -> BaseAlgorithm:
    make: Callable[..., BaseAlgorithm] = find_algorithm(config.algorithm)
    own: dict[str, Any] = {"device": "cpu"} if config.algorithm == "ARS" else {"device": "cpu", "gamma": GAMMA}
    # A copy: some algorithms write into the settings of their policy.
    first = load_policy(config.begin_with) if config.begin_with else None
    shaped = {} if first is None else shape_as(first)
    options = {**own, **get_default_options(config), **shaped, **copy.deepcopy(config.options)}
    if isinstance(options.get("learning_rate"), list):
        highest, lowest = options["learning_rate"]
        options["learning_rate"] = LinearSchedule(highest, lowest, 1.0)
    kind = "MlpLstmPolicy" if config.algorithm == "RecurrentPPO" else "MlpPolicy"
    model = make(kind, envs, seed=config.seed, tensorboard_log=str(folder / "tensorboard"), **options)
    knobs = KnobSet(config.knobs, config.action_kind)
    prefer_standing_still(model, knobs)
    if first is not None:
        start_from(model, first, knobs)
    return model


def prefer_standing_still(model: BaseAlgorithm, knobs: KnobSet) -> None:
    """Let a discrete policy begin by mostly leaving the plan alone, rather than by walking every knob at random.

    A random walk of the knobs ruins nearly every run, and there is little to learn from ruins. The more actions a knob
    has, the larger the logit has to be: a fixed one wastes a third of a training.
    """
    action_net = getattr(model.policy, "action_net", None)
    if knobs.action == "box" or not isinstance(action_net, nn.Linear):
        return
    with torch.no_grad():
        if knobs.action == "flat":
            action_net.bias[0] += find_logit(knobs.outputs, STANDING_STILL)
        else:
            for knob, part in zip(knobs.knobs, knobs.parts, strict=True):
                action_net.bias[part][knob.still] += find_logit(len(knob.steps), STANDING_STILL)
