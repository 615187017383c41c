"""TaskSampler: which task an episode draws, its seed, and the plan it starts from. For both environments."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from loopwright.envs.loop.errors import LoopwrightError, UncalibratedTaskError
from loopwright.envs.loop.plan import LoopPlan
from loopwright.inner_tasks.datasets import require
from loopwright.inner_tasks.registry import find_family, get_shape, get_task
from loopwright.inner_tasks.suites import get_suite
from loopwright.inner_tasks.targets import find_calibration
from loopwright.inner_tasks.task import ShapeKey, Task


class Start(NamedTuple):
    """What an episode begins with."""

    task: Task
    seed: int
    plan: LoopPlan


class TaskSampler:
    """Draws the starts of episodes.

    Args:
        suite: name of the suite that tasks are drawn from.
        tasks: tasks to draw from instead, by name or as they are; None for the whole suite. One given by name is drawn
            when an episode needs it; whether it can be is checked here.
        plan: what episodes start from.
        plan_spread: in orders of magnitude; an episode starts with its learning rate times 10^U(-spread, spread).

    Raises:
        LoopwrightError: no task, an unknown one, one without a target or without data; a spread outside [0, 2].
    """

    def __init__(
        self, suite: str, tasks: Sequence[str | Task] | None, plan: LoopPlan | None, plan_spread: float
    ) -> None:
        if tasks is not None and len(tasks) == 0:
            raise LoopwrightError("tasks is empty; give at least one task, or None for the whole suite")
        if not 0 <= plan_spread <= 2:
            raise LoopwrightError(f"plan_spread must lie in [0, 2], orders of magnitude; got {plan_spread}")
        self.tasks = list(get_suite(suite).tasks() if tasks is None else tasks)
        for task in self.tasks:
            check_task(task)
        self.plan, self.plan_spread = plan or LoopPlan(), plan_spread

    def by_shape(self) -> dict[ShapeKey, list[str | Task]]:
        """The tasks that can share lanes, by their shape."""
        shapes: dict[ShapeKey, list[str | Task]] = {}
        for task in self.tasks:
            shapes.setdefault(get_shape(task), []).append(task)
        return shapes

    def draw(
        self,
        rng: np.random.Generator,
        *,
        among: Sequence[str | Task] | None = None,
        chosen: str | Task | None = None,
    ) -> Start:
        """A start on one of the tasks ``among`` (by default any of its own), or on the ``chosen`` one."""
        tasks = self.tasks if among is None else among
        drawn = tasks[int(rng.integers(len(tasks)))]
        seed = int(rng.integers(2**31))
        return Start(draw_task(chosen or drawn), seed, self._draw_plan(rng))

    def _draw_plan(self, rng: np.random.Generator) -> LoopPlan:
        if self.plan_spread == 0:
            return self.plan
        factor = 10 ** rng.uniform(-self.plan_spread, self.plan_spread)
        return replace(self.plan, learning_rate=self.plan.learning_rate * factor)


def check_task(task: str | Task) -> None:
    """Raises ``LoopwrightError`` for a task that cannot be an episode."""
    if isinstance(task, str):
        family, _ = find_family(task)
        if family.requires is not None:
            require(family.requires)
    if (find_calibration(task) if isinstance(task, str) else task.calibration) is None:
        name = task if isinstance(task, str) else task.name
        raise UncalibratedTaskError(f"task {name} has no calibrated target; see loopwright.calibrate")


def draw_task(task: str | Task) -> Task:
    return get_task(task) if isinstance(task, str) else task
