"""What is trained: tasks, the families they are drawn from, and the suites that give families a role."""

from loopwright.inner_tasks.models import MLP, ConvNet, ModelSpec, RecurrentNet, Rosenbrock, Transformer
from loopwright.inner_tasks.own import make_task
from loopwright.inner_tasks.suites import Suite, get_suite, suites
from loopwright.inner_tasks.task import Calibration, Split, Task, TaskFamily, Variation, families, get_task, register

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
    "families",
    "get_suite",
    "get_task",
    "make_task",
    "register",
    "suites",
]
