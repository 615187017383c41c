"""Runs controllers: paired runs of several methods on the same tasks with the same seeds.

Every method starts from the same initial weights and reads the same samples in the same order. The cost of a run is
what it paid until the first of two evaluations in a row at or below the target, in geq; a run that misses the target
counts as the whole budget, and as a miss.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from loopwright.agents.judging.parts import Numbered, OnPart, estimate_flops, find_lanes, slice_evenly, work_on
from loopwright.agents.judging.results import Key, RunRecord, TracePoint
from loopwright.agents.judging.workers import works_here
from loopwright.envs.engine.library_lanes import LibraryLanes
from loopwright.envs.episode.batch import EpisodeBatch
from loopwright.envs.episode.decision import HIT, OUTCOMES, Decision
from loopwright.envs.episode.hold_rule import HoldRule
from loopwright.envs.episode.recorder import Recorder
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.episode.start import Start
from loopwright.envs.loop.controller import Controller, View
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.ledger import Author
from loopwright.envs.loop.plan import ROW, unstack_plans
from loopwright.inner_tasks.task import Task


class Job(NamedTuple):
    """One run to be done: who controls, on which task, from which seed; ``training`` as in ``results.Key``."""

    controller: Controller
    task: Task
    seed: int
    training: int = 0
    traced: bool = False

    @property
    def key(self) -> Key:
        return Key(self.controller.name, self.training, self.task.name, self.seed)


# Given a job and its record, the job to do next in its place, or None.
Follow = Callable[[Job, RunRecord], Job | None]


def run_controller(
    controller: Controller,
    tasks: Sequence[Task],
    seeds: Sequence[int],
    settings: EpisodeSettings | None = None,
    *,
    traced: bool = False,
    **options: Any,
) -> list[RunRecord]:
    """Run every task with every seed; ``options`` are those of ``run_jobs``."""
    return run_jobs([Job(controller, task, seed, 0, traced) for task in tasks for seed in seeds], settings, **options)


def run_jobs(
    jobs: Sequence[Job],
    settings: EpisodeSettings | None = None,
    *,
    lanes: int = 64,
    done: Container[Key] = (),
    ledgers: Path | None = None,
    on_run: Callable[[RunRecord], None] | None = None,
    on_part: OnPart | None = None,
    follow: Follow | None = None,
    kind: str = "runs",
    workers: int = 1,
) -> list[RunRecord]:
    """Do all the runs, those of one shape side by side, and return their records in the order of ``jobs``.

    Args:
        jobs: controllers, tasks and seeds, in any mixture.
        settings: with ``compile``, the loop is fused only for shapes of which there are as many runs as lanes, with
            ``follow`` half as many: for fewer it does not pay.
        lanes: runs side by side, at most: ``parts.find_lanes``; with ``follow`` no more than half of the jobs, lest
            those that are followed by many others end up alone beside empty lanes.
        done: jobs that are not to be done again; they count where it is decided what to compile.
        ledgers: folder for the audit log of every run.
        on_run: called with each record when its run has ended.
        on_part: called with a part, of which there is one for each shape or more, and the seconds it took.
        follow: asked after every run for another one of the same shape and kind; with it, the records returned are
            those of the last runs.
        kind: what its parts are called.
        workers: processes, each with one thread, among which the jobs are divided; with more than one, ``on_run`` hears
            of a part's runs when all of them have ended.

    Raises:
        LoopwrightError: ``follow`` together with several workers.
    """
    if follow is not None and workers > 1:
        raise LoopwrightError("jobs that follow others are chosen here, not in a worker: follow needs workers=1")
    per_lane = 1 if follow is None else 2
    parts = make_parts(jobs, settings or EpisodeSettings(), lanes, done, ledgers, per_lane=per_lane, kind=kind)
    records: dict[int, RunRecord] = {}
    for number, record in _all_runs(parts, follow, workers, on_part):
        records[number] = record
        if on_run is not None:
            on_run(record)
    return [records[number] for number in sorted(records)]


def make_parts(
    jobs: Sequence[Job], settings: EpisodeSettings, lanes: int, done: Container[Key], ledgers: Path | None = None,
    *, per_lane: int = 1, kind: str = "runs",
) -> list["JobsPart"]:  # fmt: skip
    """The jobs that are not ``done``, in parts that can share a batch each; arguments as of ``run_jobs``."""
    of_shape = Counter(job.task.shape_key for job in jobs)
    batches: dict[object, list[int]] = {}
    for number, job in enumerate(jobs):
        if job.key not in done:
            batches.setdefault((job.task.shape_key, _find_company(job.controller, ledgers)), []).append(number)
    parts = []
    for numbers in batches.values():
        own = [jobs[number] for number in numbers]
        runs = of_shape[own[0].task.shape_key]
        most = find_lanes(own[0].task.model, lanes, per_lane)
        fused = settings.compiles(lanes) and runs * per_lane >= most
        # A compiled tick exists per lane count, so a batch keeps its size even where most of its jobs are done.
        width = min(most, math.ceil((runs if fused else len(own)) / per_lane))
        parts.append(JobsPart(numbers, own, replace(settings, compile=fused), width, ledgers, most, kind))
    return parts


class JobsPart(NamedTuple):
    """Jobs that can share a batch of so many ``lanes``, their numbers, and how to run them: a ``parts.Part``."""

    numbers: list[int]
    jobs: list[Job]
    settings: EpisodeSettings
    lanes: int
    ledgers: Path | None
    full: int
    kind: str = "runs"

    @property
    def model(self) -> str:
        return repr(self.jobs[0].task.model)

    @property
    def runs(self) -> int:
        return len(self.jobs)

    @property
    def least(self) -> int:
        return self.lanes

    @property
    def flops(self) -> float:
        return estimate_flops([job.task for job in self.jobs])

    def cut(self, pieces: int) -> list["JobsPart"]:
        own = slice_evenly(len(self.jobs), pieces)
        return [self._replace(numbers=self.numbers[piece], jobs=self.jobs[piece]) for piece in own]

    def work(self) -> tuple[list[Numbered], float, float]:
        runs = Runs(self)
        found = list(runs.run())
        return found, runs.setup, runs.seconds


def _find_company(controller: Controller, ledgers: Path | None) -> tuple[object, ...]:
    """What controllers must have in common to share a batch."""
    author = (controller.name, controller.fingerprint) if ledgers else None
    return controller.needs, controller.rolls_back, controller.own_optimizer is not None, author


def _all_runs(
    parts: Sequence[JobsPart], follow: Follow | None, workers: int, on_part: OnPart | None
) -> Iterator[Numbered]:
    """Numbers and records of all jobs, as they end; from workers, a part at a time."""
    if not works_here(workers):
        for _, found in work_on(parts, workers, on_part):
            yield from found
        return
    for part in parts:
        runs = Runs(part, follow)
        yield from runs.run()
        if on_part is not None:
            on_part(part, runs.setup, runs.seconds)


def _start_of(job: Job) -> Start:
    own = job.controller.own_optimizer
    return Start(job.task, job.seed, job.controller.start, updates_by="" if own is None else own.kind)


class Runs:
    """The jobs of one part, started in whichever lane is free; ``setup`` is seconds until the first decision."""

    def __init__(self, part: JobsPart, follow: Follow | None = None) -> None:
        self.numbers, self.jobs, self.follow = part.numbers, part.jobs, follow
        self.setup, self._begun = 0.0, time.perf_counter()
        first, lanes = part.jobs[0].controller, part.lanes
        recorder = Recorder(part.ledgers, Author(first.name, first.fingerprint)) if part.ledgers else None
        self.batch = EpisodeBatch(
            part.jobs[0].task, lanes, part.settings, needs=first.needs, rolls_back=first.rolls_back,
            library=first.own_optimizer is not None, recorder=recorder,
        )  # fmt: skip
        self.waiting = deque(range(len(part.jobs)))
        self.current: list[int | None] = [None] * lanes
        self.traces: list[list[TracePoint]] = [[] for _ in range(lanes)]
        self.decisions = torch.zeros(lanes)
        self.easier = HoldRule(lanes)  # a second, easier target

    @property
    def seconds(self) -> float:
        """Since they were begun."""
        return time.perf_counter() - self._begun

    def run(self) -> Iterator[Numbered]:
        """Every job's number and record, as they end."""
        batch = self.batch
        self._start(list(range(len(self.current))))
        while any(job is not None for job in self.current):
            plans = self._plans()
            decision = batch.decide(plans)
            self.setup = self.setup or self.seconds
            self.decisions += 1
            self.easier.see(decision.loss, batch.budget.cost)
            free = []
            for lane, number in enumerate(self.current):
                if number is None:
                    continue
                job = self.jobs[number]
                if job.traced:
                    (plan,) = unstack_plans(plans[:, lane : lane + 1])
                    cost, loss = float(batch.budget.cost[lane]), float(decision.loss[lane])
                    self.traces[lane].append(TracePoint(cost, loss, plan))
                if decision.done[lane]:
                    record = self._record(job, lane, decision)
                    yield self.numbers[number], record
                    self.current[lane] = None
                    following = self.follow(job, record) if self.follow else None
                    if following is not None:
                        self.jobs[number] = following
                        self.waiting.append(number)
                    free.append(lane)
            self._start(free)

    def _start(self, free: list[int]) -> None:
        """Start waiting jobs in the lanes that are free."""
        free, idle = free[: len(self.waiting)], free[len(self.waiting) :]
        engine = self.batch.lanes
        if isinstance(engine, LibraryLanes):
            engine.release(idle)
        if not free:
            return
        numbers = [self.waiting.popleft() for _ in free]
        for lane, number in zip(free, numbers, strict=True):
            self.current[lane], self.traces[lane] = number, []
        self.decisions[free] = 0
        jobs = [self.jobs[number] for number in numbers]
        easier = [job.task.calibration.easier if job.task.calibration else None for job in jobs]
        self.easier.begin(torch.tensor(free), torch.tensor([math.nan if loss is None else loss for loss in easier]))
        self.batch.begin(free, [_start_of(job) for job in jobs])
        for lane, job in zip(free, jobs, strict=True):
            if isinstance(engine, LibraryLanes) and job.controller.own_optimizer is not None:
                updates = float(self.batch.budget.total[lane]) / self.batch.settings.microbatch
                engine.equip(lane, job.controller.own_optimizer, math.ceil(updates / job.controller.start.batch))

    def _plans(self) -> torch.Tensor:
        """What the controllers decide: each is shown all lanes, and heard on its own."""
        batch = self.batch
        spent = (batch.budget.cost / batch.budget.total).float()
        view = View(batch.observation, batch.plans, spent, self.decisions.clone(), batch.step_ratio)
        owned: dict[int, tuple[Controller, list[int]]] = {}
        for lane, number in enumerate(self.current):
            if number is not None:
                controller = self.jobs[number].controller
                owned.setdefault(id(controller), (controller, []))[1].append(lane)
        plans = batch.plans.clone()
        for controller, lanes in owned.values():
            plans[:, lanes] = controller.decide(view)[:, lanes]
            if controller.sets_rate:
                plans[ROW["learning_rate"], lanes] *= batch.rate_scale[lanes]
        return plans

    def _record(self, job: Job, lane: int, decision: Decision) -> RunRecord:
        batch = self.batch
        hit, budget = int(decision.outcome[lane]) == HIT, float(batch.budget.total[lane])
        calibration = job.task.calibration
        easier = None
        if calibration is not None and calibration.easier is not None:
            easier = float(self.easier.cost[lane]) if self.easier.held[lane] else budget
        return RunRecord(
            job.controller.name,
            job.task.name,
            job.seed,
            OUTCOMES[int(decision.outcome[lane])],
            float(batch.hit.cost[lane]) if hit else budget,
            budget,
            float(decision.loss[lane]),
            float(decision.metric[lane]),
            job.training,
            easier,
            tuple(self.traces[lane]),
        )
