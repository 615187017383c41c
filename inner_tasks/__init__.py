"""What is trained: tasks, the families they are drawn from, and the suites that give families a role."""

from loopwright.inner_tasks import noisy, real, sequences, spiky, synthetic  # noqa: F401  (their families register themselves)
from loopwright.inner_tasks.family import TaskFamily, Variation
from loopwright.inner_tasks.models import MLP, ConvNet, ModelSpec, RecurrentNet, Rosenbrock, Transformer
from loopwright.inner_tasks.own import make_task
from loopwright.inner_tasks.registry import get_task, list_families, register_family
from loopwright.inner_tasks.suites import Suite, get_suite, list_suites
from loopwright.inner_tasks.task import Calibration, Split, Task

__all__ = [
    "MLP",
    "Calibration",
    "ConvNet",
    "ModelSpec",
    "RecurrentNet",
    "Rosenbrock",
    "Split",
    "Suite",
    "Task",
    "TaskFamily",
    "Transformer",
    "Variation",
    "get_suite",
    "get_task",
    "list_families",
    "list_suites",
    "make_task",
    "register_family",
]
