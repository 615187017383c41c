"""What a geq costs in seconds: every method as a plain loop in one thread, with its controller's own work inside.

Samples alone mislead: optimizers differ by ten times in the time of a step, and a controller looks and thinks. So for
each method and task a ``PlainLoop`` trains for some decisions under plans taken from the method's own run, and
whatever the method does besides is done and timed as well: gradient statistics, the look at the control split, the
observation, the policy, the guard's snapshots, rollbacks. A controller that needs the control loss alone is timed
without gradient statistics. Methods take turns on a task, and the median of several rounds counts: machines are noisy.
How far the rounds lie apart goes into the intervals.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from loopwright.agents.controllers.policy import Policy
from loopwright.agents.judging.records import Header, RecordKind, RecordsFile, read_records
from loopwright.agents.judging.results import ResultsHeader, RunRecord
from loopwright.envs.engine.cost import measure_cost
from loopwright.envs.engine.plain import PlainLoop
from loopwright.envs.engine.threads import limit_threads
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.compiled_observer import CompiledObserver
from loopwright.envs.loop.context import Context
from loopwright.envs.loop.controller import Controller, View
from loopwright.envs.loop.guard import SNAPSHOT_EVERY
from loopwright.envs.loop.observation import OBSERVATION_NAMES, Needs
from loopwright.envs.loop.observer import Reading
from loopwright.envs.loop.plan import OPTIMIZERS, LoopPlan, name_column, stack_plans
from loopwright.envs.loop.telemetry import Statistics, summarise
from loopwright.envs.loop.untrusted import Name, Positive, demand, strict
from loopwright.inner_tasks.task import Split, Task

ROUNDS, MOST_ROUNDS = 5, 1000  # of an evaluation, and of what is read
PLANS = 5  # of a run, evenly spread, under which a decision is timed


@strict
@dataclass(frozen=True)
class Timing:
    """Seconds per geq of one method on one task in every round, and the share of them that is the controller's work.

    Round r of one method lies beside round r of the others on the same task.
    """

    method: Name
    task: Name
    rounds: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=MOST_ROUNDS)]
    overhead: Annotated[float, Field(ge=0, le=1)]

    @property
    def key(self) -> tuple[str, str]:
        return self.method, self.task

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def seconds_per_geq(self) -> float:
        return median(self.rounds)


def pick_plans(record: RunRecord, count: int = PLANS) -> list[LoopPlan]:
    """``count`` of the plans that a traced run trained under, evenly spread over it."""
    last = len(record.trace) - 1
    return [record.trace[round(i * last / max(count - 1, 1))].plan for i in range(count)]


def time_methods(
    methods: Sequence[tuple[Controller, Sequence[LoopPlan]]], task: Task, settings: EpisodeSettings, seed: int
) -> list[Timing]:
    """Time the controllers, each with the plans it is to train under, on one task; in one thread."""
    # The same thing under two names takes the same time, and is timed once.
    twins = [_find_twin(methods, number) for number in range(len(methods))]
    different = [number for number, twin in enumerate(twins) if twin == number]
    measured = dict(zip(different, _measure([methods[n] for n in different], task, settings, seed), strict=True))
    return [replace(measured[twin], method=methods[n][0].name) for n, twin in enumerate(twins)]


def _find_twin(methods: Sequence[tuple[Controller, Sequence[LoopPlan]]], number: int) -> int:
    """The first of the methods that differs from this one in nothing but its name."""

    def without_name(at: int) -> tuple[Any, Sequence[LoopPlan]]:
        controller: Any = methods[at][0]
        return replace(controller, name=""), methods[at][1]

    return next(other for other in range(number + 1) if without_name(other) == without_name(number))


def _measure(
    methods: Sequence[tuple[Controller, Sequence[LoopPlan]]], task: Task, settings: EpisodeSettings, seed: int
) -> list[Timing]:
    with limit_threads(1):
        loops = [_TimedLoop(controller, task, settings, seed) for controller, _ in methods]
        for loop, (_, plans) in zip(loops, methods, strict=True):
            loop.decide(plans[0])  # the first of everything is slower
        rounds: list[list[tuple[float, float]]] = [[] for _ in methods]
        for _ in range(ROUNDS):
            for own, loop, (_, plans) in zip(rounds, loops, methods, strict=True):
                seconds, extra, geq = (sum(column) for column in zip(*map(loop.decide, plans), strict=True))
                own.append((seconds / geq, extra / seconds))
    return [
        # The difference of two times, which noise can take below 0.
        Timing(controller.name, task.name, tuple(rate for rate, _ in own), max(0.0, median(share for _, share in own)))
        for (controller, _), own in zip(methods, rounds, strict=True)
    ]


class _TimedLoop:
    """A plain loop under control, one decision at a time."""

    def __init__(self, controller: Controller, task: Task, settings: EpisodeSettings, seed: int) -> None:
        self.controller, self.task, self.settings = controller, task, settings
        self.own_optimizer = controller.own_optimizer
        watched = controller.needs is Needs.OBSERVATION
        self.loop, self.bare = (self._loop(seed, telemetry) for telemetry in (watched, False))
        self.size = min(settings.control_batch, len(task.control))
        order = torch.randperm(len(task.control), generator=torch.Generator().manual_seed(seed))
        self.control = Split(task.control.inputs[order], task.control.labels[order])
        self.look = measure_cost(task.model).look(self.size) if controller.needs.looks else 0.0
        self.observer = CompiledObserver()
        price_list, own = settings.price_list, controller.own_optimizer
        names = OPTIMIZERS if own is None else [*OPTIMIZERS, own.kind]
        self.prices = price_list.quote(task.model, settings.microbatch, names)
        context = Context(
            target=0.5, budget=1e4, parameters=sum(p.numel() for p in self.loop.parameters),
            samples=task.distinct_samples, prices=self.prices, microbatch=settings.microbatch,
        )  # fmt: skip
        self.observer.begin([0], np.ones(1), [context])
        self.smoothed = 0.0
        self.memory = controller.begin(1) if isinstance(controller, Policy) else None
        self.decisions = 0
        # The guard takes a snapshot every few decisions; for a rollback the best state is kept, at worst at each.
        guarded = 1 / SNAPSHOT_EVERY if settings.guard and self.own_optimizer is None else 0.0
        self.snapshots = guarded + float(controller.rolls_back)
        self.kept = self.loop.snapshot()

    def _loop(self, seed: int, telemetry: bool) -> PlainLoop:
        return PlainLoop(
            self.task, seed, microbatch=self.settings.microbatch, telemetry=telemetry,
            own_optimizer=self.own_optimizer, updates=1000,
        )  # fmt: skip

    def decide(self, plan: LoopPlan) -> tuple[float, float, float]:
        """Seconds in all, seconds of those for the controller, and geq, of one decision under ``plan``."""
        plans = stack_plans([replace(plan, rollback=False)])
        fields = name_column(plans, 0)
        start = time.perf_counter()
        if plan.rollback:
            self.loop.restore(self.kept)
        restored = time.perf_counter()
        statistics = self.loop.run(plan, self.settings.ticks_per_decision)
        trained = time.perf_counter()
        self._control(plans, fields, statistics)
        controlled = time.perf_counter()
        extra = (restored - start) + (controlled - trained)
        if self.snapshots:
            self.kept = self.loop.snapshot(self.kept)
            extra += self.snapshots * (time.perf_counter() - controlled)
        seconds = (trained - restored) + extra
        if self.loop.probe is not None:
            began = time.perf_counter()
            self.bare.run(plan, self.settings.ticks_per_decision)
            extra += (trained - restored) - (time.perf_counter() - began)
        price = self.prices[plan.optimizer if self.own_optimizer is None else self.own_optimizer.kind]
        cost, updates = (statistics.total(name).item() for name in ("cost", "updates"))
        return seconds, extra, cost + updates * price + self.look

    def _control(self, plans: torch.Tensor, fields: Mapping[str, float], statistics: Statistics) -> None:
        """What a controller does between two decisions of one run: a policy as it does in a loop it is attached to."""
        observation = np.zeros((1, len(OBSERVATION_NAMES)), np.float32)
        if self.controller.needs.looks:
            loss = self.loop.look(self._next_control_batch())
            if self.controller.needs is Needs.CONTROL_LOSS:
                self.smoothed += 0.3 * (math.log(max(loss, 1e-12)) - self.smoothed)
                observation[0, OBSERVATION_NAMES.index("control_progress")] = self.smoothed
            else:
                telemetry = summarise(statistics, fields["clip"], self.observer.arithmetic)
                read = (self.loop.cursor + 1.0) * self.loop.microbatch
                reading = Reading(telemetry, loss, fields, 0.5, True, False, samples_read=read)
                observation = self.observer.observe(reading)
        self.decisions += 1
        if isinstance(self.controller, Policy):
            steps = self.controller.steps_of_one(observation, self.memory)
            self.controller.knobs.move_fields(steps, fields, self.observer.arithmetic, self.loop.step_ratio)
            return
        taken, left = torch.tensor([float(self.decisions)]), torch.tensor([0.5])
        self.controller.decide(View(torch.from_numpy(observation), plans, left, taken, self.loop.step_ratio))

    def _next_control_batch(self) -> Split:
        """Of the split in random order the next samples."""
        start = self.decisions * self.size % (len(self.control) - self.size + 1)
        batch = slice(start, start + self.size)
        return Split(self.control.inputs[batch], self.control.labels[batch])


def _check(header: Header, timing: Timing) -> None:
    demand(timing.method in header["methods"], f"the header names no method {timing.method!r}")


TIMINGS_KIND = RecordKind[Timing]("timings", "loopwright-timings-1", ResultsHeader, Timing, _check, "evaluate again")


class TimingsFile(RecordsFile[Timing]):
    """Timings on disk, one per method and task: see ``RecordsFile``, and for the arguments ``ResultsFile``.

    An evaluation that goes on times only what is missing.
    """

    def __init__(self, path: Path, header: Header, methods: dict[str, list[str]]) -> None:
        super().__init__(path, TIMINGS_KIND, {**header, "methods": methods})

    def methods(self, task: str) -> set[str]:
        """What was timed on a task."""
        return {timing.method for timing in self.records if timing.task == task}

    def replace(self, task: str, timings: Sequence[Timing]) -> None:
        """Keep one task's timings, all at once: they are only comparable among themselves."""
        self.rewrite([timing for timing in self.records if timing.task != task] + list(timings))


def read_timings(path: Path) -> list[Timing]:
    """Raises ``LoopwrightError`` for a file that does not hold timings."""
    return read_records(path, TIMINGS_KIND)[1]


def convert_to_seconds(records: Sequence[RunRecord], timings: Sequence[Timing]) -> list[RunRecord]:
    """The records with cost and budget in seconds; those of methods that were not timed are left out."""
    rates = {(timing.method, timing.task): timing.seconds_per_geq for timing in timings}
    found = []
    for record in records:
        rate = rates.get((record.method, record.task))
        if rate is not None:
            easier = None if record.easier_cost is None else record.easier_cost * rate
            found.append(replace(record, cost=record.cost * rate, budget=record.budget * rate, easier_cost=easier))
    return found


def estimate_timing_variance(timings: Sequence[Timing], method: str, against: str, tasks: Collection[str]) -> float:
    """The variance that measuring seconds adds to the mean over ``tasks`` of log(seconds per geq / the other's).

    From the spread over rounds of the ratio of the two on a task; a median varies by pi / 2 of what a mean does.
    """
    rounds = {(timing.method, timing.task): np.log(timing.rounds) for timing in timings}
    total = 0.0
    for ours, theirs in ((rounds[method, task], rounds[against, task]) for task in tasks):
        parts = [ours - theirs] if len(ours) == len(theirs) else [ours, theirs]
        total += sum(float(part.var(ddof=1)) / len(part) for part in parts if len(part) > 1)
    return math.pi / 2 * total / len(tasks) ** 2
