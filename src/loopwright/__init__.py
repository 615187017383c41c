"""Loopwright: a training run as a Gymnasium environment. Importing it registers the environments."""

import gymnasium

from loopwright.envs.calibration import calibrate
from loopwright.envs.episodes import EpisodeSettings
from loopwright.envs.plan import LoopPlan
from loopwright.envs.training_loop import TrainingLoopEnv, TrainingLoopVectorEnv
from loopwright.inner_tasks import Task, TaskFamily, families, get_suite, get_task, make_task, suites
from loopwright.inner_tasks.errors import LoopwrightError

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
        vector_entry_point="loopwright.envs.training_loop:TrainingLoopVectorEnv",
        kwargs={"knobs": _knobs},
    )

__all__ = [
    "ENVIRONMENT_IDS",
    "EpisodeSettings",
    "LoopPlan",
    "LoopwrightError",
    "Task",
    "TaskFamily",
    "TrainingLoopEnv",
    "TrainingLoopVectorEnv",
    "calibrate",
    "families",
    "get_suite",
    "get_task",
    "make_task",
    "suites",
]
__version__ = "0.1.0"
