"""Judges controllers: paired runs of several methods on the same tasks with the same seeds.

Every method starts from the same initial weights and reads the same samples in the same order. The cost of a run is
what it paid until the first of two evaluations in a row at or below the target, in geq; a run that misses the target
counts as the whole budget, and as a miss.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from loopwright.agents.controller import Controller, View
from loopwright.envs.episodes import HIT, OUTCOMES, Decision, EpisodeBatch, EpisodeSettings
from loopwright.envs.ledger import Author
from loopwright.envs.plan import unstack_plans
from loopwright.inner_tasks.task import Task


@dataclass(frozen=True)
class RunRecord:
    """One run of one method: what it cost to hit the target, or the whole budget for a miss.

    ``trace`` holds, per decision, the cost so far, the target-split loss and the plan; empty unless asked for.
    """

    method: str
    task: str
    seed: int
    outcome: str
    cost: float
    budget: float
    final_loss: float
    final_metric: float
    trace: tuple[dict[str, Any], ...] = ()

    @property
    def hit(self) -> bool:
        return self.outcome == OUTCOMES[HIT]


class Job(NamedTuple):
    """One run to be done: who controls, on which task, from which seed."""

    controller: Controller
    task: Task
    seed: int


def run_controller(
    controller: Controller,
    tasks: Sequence[Task],
    seeds: Sequence[int],
    settings: EpisodeSettings | None = None,
    **options: Any,
) -> list[RunRecord]:
    """Run every task with every seed; ``options`` are those of ``run_jobs``."""
    return run_jobs([Job(controller, task, seed) for task in tasks for seed in seeds], settings, **options)


def run_jobs(
    jobs: Sequence[Job],
    settings: EpisodeSettings | None = None,
    *,
    lanes: int = 64,
    traced: Sequence[tuple[str, int]] = (),
    ledgers: Path | None = None,
    on_run: Callable[[RunRecord], None] | None = None,
) -> list[RunRecord]:
    """Do all the runs, those of one shape side by side, and return their records in the order of ``jobs``.

    Args:
        jobs: controllers, tasks and seeds, in any mixture.
        settings: with ``compile``, the loop is fused only for shapes of which there are ``lanes`` runs or more: for
            fewer it does not pay.
        lanes: runs side by side.
        traced: the (task, seed) pairs whose trace is kept.
        ledgers: folder for the audit log of every run.
        on_run: called with each record when its run has ended.
    """
    settings = settings or EpisodeSettings()
    groups: dict[object, list[int]] = {}
    for number, (controller, task, _) in enumerate(jobs):
        kind = (controller.looks, controller.rolls_back, (controller.name, controller.fingerprint) if ledgers else None)
        groups.setdefault((task.shape_key, kind), []).append(number)
    of_shape = Counter(job.task.shape_key for job in jobs)
    records: dict[int, RunRecord] = {}
    for numbers in groups.values():
        fused = settings.compile and of_shape[jobs[numbers[0]].task.shape_key] >= lanes
        # A compiled tick exists per lane count, so the batch keeps its size even when the jobs run out.
        batch = _Runs([jobs[number] for number in numbers], replace(settings, compile=fused),
                      lanes if fused else min(lanes, len(numbers)), set(traced), ledgers)  # fmt: skip
        for position, record in batch.run():
            records[numbers[position]] = record
            if on_run is not None:
                on_run(record)
    return [records[number] for number in range(len(jobs))]


class _Runs:
    """The jobs of one shape, started in whichever lane is free."""

    def __init__(
        self,
        jobs: list[Job],
        settings: EpisodeSettings,
        lanes: int,
        traced: set[tuple[str, int]],
        ledgers: Path | None,
    ) -> None:
        first = jobs[0].controller
        self.jobs, self.traced = jobs, traced
        self.batch = EpisodeBatch(
            jobs[0].task, lanes, settings, looks=first.looks, rolls_back=first.rolls_back, ledgers=ledgers,
            author=Author(first.name, first.fingerprint),
        )  # fmt: skip
        self.waiting = list(reversed(range(len(jobs))))
        self.current: list[int | None] = [None] * lanes
        self.traces: list[list[dict[str, Any]]] = [[] for _ in range(lanes)]
        self.decisions = torch.zeros(lanes)

    def run(self) -> Iterator[tuple[int, RunRecord]]:
        """Every job's number and record, as they end."""
        batch = self.batch
        self._start(list(range(len(self.current))))
        while any(job is not None for job in self.current):
            plans = self._plans()
            decision = batch.decide(plans)
            self.decisions += 1
            free = []
            for lane, number in enumerate(self.current):
                if number is None:
                    continue
                job = self.jobs[number]
                if (job.task.name, job.seed) in self.traced:
                    (plan,) = unstack_plans(plans[:, lane : lane + 1])
                    cost, loss = float(batch.cost[lane]), float(decision.loss[lane])
                    self.traces[lane].append({"cost": cost, "loss": loss, "plan": plan.as_dict()})
                if decision.done[lane]:
                    yield number, self._record(job, lane, decision)
                    self.current[lane] = None
                    free.append(lane)
            self._start(free)

    def _start(self, free: list[int]) -> None:
        free = free[: len(self.waiting)]
        if free:
            numbers = [self.waiting.pop() for _ in free]
            for lane, number in zip(free, numbers, strict=True):
                self.current[lane], self.traces[lane] = number, []
            self.decisions[free] = 0
            jobs = [self.jobs[number] for number in numbers]
            starts = [job.controller.start for job in jobs]
            self.batch.begin(free, [job.task for job in jobs], [job.seed for job in jobs], starts)

    def _plans(self) -> torch.Tensor:
        """What the controllers decide: each is shown all lanes, and heard on its own."""
        batch = self.batch
        spent = (batch.cost / batch.budget).float()
        view = View(batch.observation, batch.plans, spent, self.decisions.clone(), batch.rate_scale, batch.step_ratio)
        owned: dict[int, tuple[Controller, list[int]]] = {}
        for lane, number in enumerate(self.current):
            if number is not None:
                controller = self.jobs[number].controller
                owned.setdefault(id(controller), (controller, []))[1].append(lane)
        plans = batch.plans.clone()
        for controller, lanes in owned.values():
            plans[:, lanes] = controller.decide(view)[:, lanes]
        return plans

    def _record(self, job: Job, lane: int, decision: Decision) -> RunRecord:
        batch = self.batch
        hit, budget = int(decision.outcome[lane]) == HIT, float(batch.budget[lane])
        return RunRecord(
            job.controller.name,
            job.task.name,
            job.seed,
            OUTCOMES[int(decision.outcome[lane])],
            float(batch.hit_cost[lane]) if hit else budget,
            budget,
            float(decision.loss[lane]),
            float(decision.metric[lane]),
            tuple(self.traces[lane]),
        )


def as_json(record: RunRecord) -> dict[str, Any]:
    """The record without its trace."""
    return {key: value for key, value in asdict(record).items() if key != "trace"}
