"""TaskSampler: which task an episode draws, its seed, and what it starts from. For both environments."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.episode.start import Start
from loopwright.envs.loop.checks import check_kind, check_number
from loopwright.envs.loop.context import INFORMATION
from loopwright.envs.loop.errors import UncalibratedTaskError, UnknownNameError
from loopwright.envs.loop.plan import OPTIMIZERS, LoopPlan
from loopwright.inner_tasks.datasets import require
from loopwright.inner_tasks.registry import find_family, get_shape, get_task
from loopwright.inner_tasks.suites import get_suite
from loopwright.inner_tasks.targets import find_calibration, list_calibrated
from loopwright.inner_tasks.task import ShapeKey, Task

# What the fields of a plan are drawn from, where they are drawn.
DRAWN_FIELDS: dict[str, tuple[Any, ...]] = {
    "optimizer": OPTIMIZERS,
    "momentum": (0.0, 0.5, 0.8, 0.9, 0.95),
    "second_momentum": (0.8, 0.9, 0.95, 0.99, 0.999),
    "weight_decay": (0.0, 0.01, 0.1, 0.5),
    "batch": (1, 2, 4, 8),
    "average": (0.0, 8.0, 32.0, 128.0),
}
# What a plain run starts with around the learning rate: torch's AdamW and nothing besides, as most users' loops.
PLAIN_FIELDS: dict[str, Any] = {
    "optimizer": "adamw", "momentum": 0.9, "second_momentum": 0.999, "weight_decay": 0.01, "clip": math.inf,
    "average": 0.0,
}  # fmt: skip
PLAIN_DRAWN = {**DRAWN_FIELDS, "clip": (math.inf, 4.0, 1.0, 0.25)}
PLAIN_HELD = ("optimizer", "batch")
OPEN_BUDGETS = (0.25, 1.0)  # of open runs, in multiples of C*: drawn log-uniformly
TASKS_SHOWN = 8  # names of tasks in a message
SGD_FACTOR = 30.0  # what a learning rate of adamw is multiplied by for sgd: about the ratio of what is tuned for each


@dataclass(frozen=True)
class Spread:
    """How the plans that episodes start from lie around a plan, so that a policy does not rely on its start.

    Attributes:
        rate: in orders of magnitude: the learning rate is multiplied by 10^U(-rate, rate), in [0, 2].
        fields: the chance, in [0, 1], with which each other field of ``DRAWN_FIELDS`` is drawn anew.
        kept: those that are not, whatever the chance.
    """

    rate: float = 0.0
    fields: float = 0.0
    kept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_number("rate of a spread", self.rate, "lie in [0, 2], orders of magnitude", 0, 2)
        check_number("fields of a spread", self.fields, "be a chance, in [0, 1]", 0, 1)
        for name in self.kept:
            if name not in DRAWN_FIELDS:
                raise UnknownNameError("field that is drawn", name, list(DRAWN_FIELDS))

    def draw(
        self, rng: np.random.Generator, plan: LoopPlan, among: Mapping[str, tuple[Any, ...]] = DRAWN_FIELDS
    ) -> LoopPlan:
        """A plan around ``plan``, its fields drawn ``among`` these. Nothing is drawn for a spread of 0."""
        changes: dict[str, Any] = {}
        if self.fields:
            for name, values in among.items():
                if name in self.kept:
                    continue
                value, drawn = values[int(rng.integers(len(values)))], rng.random() < self.fields
                if drawn:
                    changes[name] = value
        rate = plan.learning_rate
        if self.rate:
            rate *= 10 ** rng.uniform(-self.rate, self.rate)
        was, now = plan.optimizer == "sgd", changes.get("optimizer", plan.optimizer) == "sgd"
        rate *= SGD_FACTOR ** (now - was)
        return replace(plan, learning_rate=rate, **changes)


class TaskSampler:
    """Draws the starts of episodes.

    Args:
        suite: name of the suite that tasks are drawn from.
        tasks: tasks to draw from instead, by name or as they are; None for the whole suite. One given by name is drawn
            when an episode needs it; whether it can be is checked here.
        plan: what episodes start from, or around.
        spread: how far around.
        settings: say what updates cost.
        withheld: the chance with which each source of information (``envs.loop.context``) is withheld.
        open_runs: the chance of an open run: without a target, for a budget drawn from ``OPEN_BUDGETS``.
        plain_runs: the chance of a plain run: it starts around torch's AdamW instead, and the optimizer and the batch
            size stay what they are at the start, as in a loop that a policy is attached to.

    Raises:
        LoopwrightError: an unknown task, one without a target or without data; a chance outside [0, 1].
    """

    def __init__(
        self,
        suite: str,
        tasks: Sequence[str | Task] | None,
        plan: LoopPlan,
        *,
        spread: Spread,
        settings: EpisodeSettings,
        withheld: float,
        open_runs: float = 0.0,
        plain_runs: float = 0.0,
    ) -> None:
        for name, chance in (("withheld", withheld), ("open_runs", open_runs), ("plain_runs", plain_runs)):
            check_number(name, chance, "be a chance, in [0, 1]", 0, 1)
        self.tasks = list(get_suite(suite).tasks() if tasks is None else tasks)
        for task in self.tasks:
            check_task(task)
        self.plan, self.spread = plan, spread
        self._settings, self._withheld = settings, withheld
        self._open_runs, self._plain_runs = open_runs, plain_runs

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
        plain = bool(self._plain_runs) and rng.random() < self._plain_runs
        around = (self._plain_plan, PLAIN_DRAWN) if plain else (self.plan, DRAWN_FIELDS)
        task, plan = draw_task(chosen or drawn), self.spread.draw(rng, *around)
        prices = self._settings.price_list.draw(rng, task.model, self._settings.microbatch)
        withheld = tuple(source for source in INFORMATION if self._withheld and rng.random() < self._withheld)
        start = Start(task, seed, plan, prices, withheld=withheld, held=PLAIN_HELD if plain else ())
        if not (self._open_runs and rng.random() < self._open_runs):
            return start
        budget = float(np.exp(rng.uniform(*np.log(OPEN_BUDGETS))))
        return start._replace(withheld=tuple(dict.fromkeys((*withheld, "target"))), open_budget=budget)

    @property
    def _plain_plan(self) -> LoopPlan:
        rate = self.plan.learning_rate / (SGD_FACTOR if self.plan.optimizer == "sgd" else 1.0)
        return replace(self.plan, learning_rate=rate, **PLAIN_FIELDS)


def check_task(task: str | Task) -> None:
    """Raises ``LoopwrightError`` for a task that cannot be an episode."""
    check_kind("a task", task, (str, Task), "a Task, or named family:seed")
    if isinstance(task, str):
        family, _ = find_family(task)
        if family.requires is not None:
            require(family.requires)
    if (find_calibration(task) if isinstance(task, str) else task.calibration) is None:
        name = task if isinstance(task, str) else task.name
        kind = f"{name.partition(':')[0]}:"
        known = [own for own in list_calibrated() if own.startswith(kind)] if isinstance(task, str) else []
        known.sort(key=lambda own: find_family(own)[1])
        some = (
            f"; calibrated are {', '.join(known[:TASKS_SHOWN])}{', ...' * (len(known) > TASKS_SHOWN)}" if known else ""
        )
        raise UncalibratedTaskError(f"task {name} has no calibrated target{some}; see loopwright.calibrate")


def draw_task(task: str | Task) -> Task:
    return get_task(task) if isinstance(task, str) else task
