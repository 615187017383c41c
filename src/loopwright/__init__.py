"""Loopwright: a training run as a Gymnasium environment. Importing it registers the environments.

The names below are loaded when they are first used: training wants Stable-Baselines3, judging SciPy, and a loop under
control neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from loopwright.agents.controllers.bundle import list_policies, load_policy, save_policy
    from loopwright.agents.controllers.ensemble import make_ensemble
    from loopwright.agents.controllers.hub import load_from_hub, push_to_hub
    from loopwright.agents.controllers.policy import Policy
    from loopwright.agents.controllers.switch import make_switch
    from loopwright.agents.controllers.tuned import load_competitors
    from loopwright.agents.judging.judge import judge
    from loopwright.agents.judging.runner import run_controller
    from loopwright.agents.steering.attach import attach
    from loopwright.agents.steering.callbacks.huggingface import HuggingFaceSteering as HuggingFaceSteering
    from loopwright.agents.steering.callbacks.lightning import LightningSteering as LightningSteering
    from loopwright.agents.steering.optimizer import PlanOptimizer, optimizer
    from loopwright.agents.steering.steering import Steering
    from loopwright.agents.training.config import TrainingConfig
    from loopwright.agents.training.extraction import extract_policy, insert_policy
    from loopwright.agents.training.rllib import extract_rllib_policy
    from loopwright.agents.training.trainer import train
    from loopwright.envs.engine.prices import measure_prices
    from loopwright.envs.episode.calibration import calibrate
    from loopwright.envs.episode.replay import replay
    from loopwright.envs.episode.settings import EpisodeSettings
    from loopwright.envs.loop.errors import LoopwrightError
    from loopwright.envs.loop.knob_set import KnobSet
    from loopwright.envs.loop.observation import OBSERVATION_NAMES
    from loopwright.envs.loop.plan import LoopPlan
    from loopwright.envs.sampling import Spread
    from loopwright.envs.sb3 import SB3VecEnv
    from loopwright.envs.training_loop import TrainingLoopEnv
    from loopwright.envs.vector import TrainingLoopVectorEnv
    from loopwright.inner_tasks.family import TaskFamily
    from loopwright.inner_tasks.own import make_task
    from loopwright.inner_tasks.registry import get_task, list_families
    from loopwright.inner_tasks.suites import get_suite, list_suites
    from loopwright.inner_tasks.task import Task

_MODULES = {
    "agents.controllers.bundle": ("list_policies", "load_policy", "save_policy"),
    "agents.controllers.ensemble": ("make_ensemble",),
    "agents.controllers.hub": ("load_from_hub", "push_to_hub"),
    "agents.controllers.policy": ("Policy",),
    "agents.controllers.switch": ("make_switch",),
    "agents.controllers.tuned": ("load_competitors",),
    "agents.judging.judge": ("judge",),
    "agents.steering.callbacks.huggingface": ("HuggingFaceSteering",),
    "agents.steering.callbacks.lightning": ("LightningSteering",),
    "agents.steering.optimizer": ("PlanOptimizer", "optimizer"),
    "agents.steering.attach": ("attach",),
    "agents.steering.steering": ("Steering",),
    "agents.judging.runner": ("run_controller",),
    "agents.training.config": ("TrainingConfig",),
    "agents.training.extraction": ("extract_policy", "insert_policy"),
    "agents.training.rllib": ("extract_rllib_policy",),
    "agents.training.trainer": ("train",),
    "envs.engine.prices": ("measure_prices",),
    "envs.episode.calibration": ("calibrate",),
    "envs.episode.replay": ("replay",),
    "envs.episode.settings": ("EpisodeSettings",),
    "envs.loop.errors": ("LoopwrightError",),
    "envs.loop.knob_set": ("KnobSet",),
    "envs.loop.observation": ("OBSERVATION_NAMES",),
    "envs.loop.plan": ("LoopPlan",),
    "envs.sampling": ("Spread",),
    "envs.sb3": ("SB3VecEnv",),
    "envs.training_loop": ("TrainingLoopEnv",),
    "envs.vector": ("TrainingLoopVectorEnv",),
    "inner_tasks.family": ("TaskFamily",),
    "inner_tasks.own": ("make_task",),
    "inner_tasks.registry": ("get_task", "list_families"),
    "inner_tasks.suites": ("get_suite", "list_suites"),
    "inner_tasks.task": ("Task",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

ENVIRONMENT_IDS = {
    "loopwright/TrainingLoop-v0": "all",
    "loopwright/TrainingLoop-core-v0": "core",
    "loopwright/TrainingLoop-lr-momentum-v0": "lr-momentum",
    "loopwright/TrainingLoop-clip-v0": "clip",
    "loopwright/TrainingLoop-loop-v0": "loop",
}

for _id, _knobs in ENVIRONMENT_IDS.items():
    gymnasium.register(
        _id,
        entry_point="loopwright.envs.training_loop:TrainingLoopEnv",
        vector_entry_point="loopwright.envs.vector:TrainingLoopVectorEnv",
        kwargs={"knobs": _knobs},
    )

__all__ = [
    "ENVIRONMENT_IDS",
    "OBSERVATION_NAMES",
    "EpisodeSettings",
    "KnobSet",
    "LoopPlan",
    "LoopwrightError",
    "PlanOptimizer",
    "Policy",
    "SB3VecEnv",
    "Spread",
    "Steering",
    "Task",
    "TaskFamily",
    "TrainingConfig",
    "TrainingLoopEnv",
    "TrainingLoopVectorEnv",
    "attach",
    "calibrate",
    "extract_policy",
    "extract_rllib_policy",
    "get_suite",
    "get_task",
    "insert_policy",
    "judge",
    "list_families",
    "list_policies",
    "list_suites",
    "load_competitors",
    "load_from_hub",
    "load_policy",
    "make_ensemble",
    "make_switch",
    "make_task",
    "measure_prices",
    "optimizer",
    "push_to_hub",
    "replay",
    "run_controller",
    "save_policy",
    "train",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
