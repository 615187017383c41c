"""What a geq costs in seconds: every method as a plain loop in one thread, with its controller's own work inside.

Samples alone mislead: optimizers differ by ten times in the time of a step, and a controller looks and thinks. So for
each method and task a ``ReferenceLoop`` trains for some decisions under plans taken from the method's own run, and
whatever the method does besides is done and timed as well: gradient statistics, the look at the control split, the
observation, the policy. Methods take turns on a task, and the fastest of several rounds counts: machines are noisy.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from loopwright.agents.controller import Controller, View
from loopwright.agents.optimizers import Optimized
from loopwright.agents.results import RunRecord
from loopwright.envs.cost import measure_cost
from loopwright.envs.episodes import EpisodeSettings
from loopwright.envs.observation import OBSERVATION_NAMES, Observer
from loopwright.envs.plan import LoopPlan, stack_plans
from loopwright.envs.randomness import control_indices, make_key
from loopwright.envs.reference import ReferenceLoop
from loopwright.envs.telemetry import SUMS, summarise
from loopwright.inner_tasks.errors import LoopwrightError
from loopwright.inner_tasks.task import Split, Task

ROUNDS = 2
PLANS = 5  # of a run, evenly spread, under which a decision is timed


@dataclass(frozen=True)
class Timing:
    """Seconds per geq of one method on one task, and the share of them that is the controller's own work."""

    method: str
    task: str
    seconds_per_geq: float
    overhead: float


def spread_plans(record: RunRecord, count: int = PLANS) -> list[LoopPlan]:
    """``count`` of the plans that a traced run trained under, evenly spread over it."""
    last = len(record.trace) - 1
    return [record.trace[round(i * last / max(count - 1, 1))].plan for i in range(count)]


def time_methods(
    methods: Sequence[tuple[Controller, Sequence[LoopPlan]]], task: Task, settings: EpisodeSettings, seed: int
) -> list[Timing]:
    """Time the controllers, each with the plans it is to train under, on one task; in one thread."""
    # The same thing under two names takes the same time, and is timed once.
    twins = [_twin(methods, number) for number in range(len(methods))]
    different = [number for number, twin in enumerate(twins) if twin == number]
    measured = dict(zip(different, _measure([methods[n] for n in different], task, settings, seed), strict=True))
    return [replace(measured[twin], method=methods[n][0].name) for n, twin in enumerate(twins)]


def _twin(methods: Sequence[tuple[Controller, Sequence[LoopPlan]]], number: int) -> int:
    """The first of the methods that differs from this one in nothing but its name."""

    def without_name(at: int) -> tuple[Any, Sequence[LoopPlan]]:
        controller: Any = methods[at][0]
        return replace(controller, name=""), methods[at][1]

    return next(other for other in range(number + 1) if without_name(other) == without_name(number))


def _measure(
    methods: Sequence[tuple[Controller, Sequence[LoopPlan]]], task: Task, settings: EpisodeSettings, seed: int
) -> list[Timing]:
    with _one_thread():
        loops = [_TimedLoop(controller, task, settings, seed) for controller, _ in methods]
        for loop, (_, plans) in zip(loops, methods, strict=True):
            loop.decide(plans[0])  # the first of everything is slower
        best: list[list[tuple[float, float, float]]] = [[] for _ in methods]
        for _ in range(ROUNDS):
            for own, loop, (_, plans) in zip(best, loops, methods, strict=True):
                now = [loop.decide(plan) for plan in plans]
                own[:] = [min(pair) for pair in zip(own, now, strict=True)] if own else now
    found = []
    for (controller, _), own in zip(methods, best, strict=True):
        seconds, extra, geq = (sum(column) for column in zip(*own, strict=True))
        found.append(Timing(controller.name, task.name, seconds / geq, extra / seconds))
    return found


class _TimedLoop:
    """A plain loop under control, one decision at a time."""

    def __init__(self, controller: Controller, task: Task, settings: EpisodeSettings, seed: int) -> None:
        self.controller, self.task, self.settings = controller, task, settings
        self.loop, self.bare = (self._make(seed, telemetry) for telemetry in (controller.looks, False))
        self.size = min(settings.control_batch, len(task.control))
        self.look = measure_cost(task.model).look(self.size)
        self.observer = Observer(1)
        self.observer.begin([0], torch.ones(1), [0.5])
        self.key, self.decisions = make_key(torch.tensor([seed])), 0

    def _make(self, seed: int, telemetry: bool) -> ReferenceLoop:
        make = self.controller.make if isinstance(self.controller, Optimized) else None
        return ReferenceLoop(
            self.task, seed, microbatch=self.settings.microbatch, telemetry=telemetry, make_update=make, updates=1000
        )

    def decide(self, plan: LoopPlan) -> tuple[float, float, float]:
        """Seconds in all, seconds of those for the controller, and geq, of one decision under ``plan``."""
        plan = replace(plan, rollback=False)
        start = time.perf_counter()
        sums = self.loop.run(plan, self.settings.ticks_per_decision)
        trained = time.perf_counter()
        self._control(plan, sums)
        end = time.perf_counter()
        geq, extra = float(sums[SUMS.index("cost")]), end - trained
        if self.controller.looks:
            geq += self.look
            began = time.perf_counter()
            self.bare.run(plan, self.settings.ticks_per_decision)
            extra += max(0.0, (trained - start) - (time.perf_counter() - began))
        return end - start, extra, geq

    def _control(self, plan: LoopPlan, sums: torch.Tensor) -> None:
        plans = stack_plans([plan])
        left = torch.tensor([0.5])
        observation = torch.zeros(1, len(OBSERVATION_NAMES))
        if self.controller.looks:
            index = control_indices(self.key, torch.tensor([self.loop.ticks]), self.size, len(self.task.control))[0]
            loss, _ = self.loop.evaluate(Split(self.task.control.inputs[index], self.task.control.labels[index]))
            observation = self.observer.observe(
                summarise(sums[:, None]), torch.tensor([loss]), plans, left, torch.ones(1, dtype=torch.bool)
            )
        self.decisions += 1
        taken = torch.tensor([float(self.decisions)])
        self.controller.decide(View(observation, plans, left, taken, torch.ones(1)))


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TimingsFile:
    """Timings as JSON lines, one per method and task; an evaluation that goes on times only what is missing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.timings = read_timings(path) if path.exists() else []

    def methods(self, task: str) -> set[str]:
        """What was timed on a task."""
        return {timing.method for timing in self.timings if timing.task == task}

    def replace(self, task: str, timings: Sequence[Timing]) -> None:
        """Keep one task's timings, all at once: they are only comparable among themselves."""
        self.timings = [timing for timing in self.timings if timing.task != task] + list(timings)
        new = self.path.with_suffix(".new")
        new.write_text("".join(json.dumps(asdict(timing)) + "\n" for timing in self.timings))
        new.replace(self.path)


def read_timings(path: Path) -> list[Timing]:
    """Raises ``LoopwrightError`` for a file that does not hold timings."""
    try:
        return [Timing(**json.loads(line)) for line in path.read_text().splitlines()]
    except (TypeError, json.JSONDecodeError) as problem:
        raise LoopwrightError(f"{path} does not hold timings: {problem}") from None


def in_seconds(records: Sequence[RunRecord], timings: Sequence[Timing]) -> list[RunRecord]:
    """The records with cost and budget in seconds; those of methods that were not timed are left out."""
    rates = {(timing.method, timing.task): timing.seconds_per_geq for timing in timings}
    found = []
    for record in records:
        rate = rates.get((record.method, record.task))
        if rate is not None:
            easier = None if record.easier_cost is None else record.easier_cost * rate
            found.append(replace(record, cost=record.cost * rate, budget=record.budget * rate, easier_cost=easier))
    return found
