"""Judges controllers: paired runs of several methods on the same tasks with the same seeds.

Every method starts from the same initial weights and reads the same samples in the same order. The cost of a run is
what it paid until the first of two evaluations in a row at or below the target, in geq; a run that misses the target
counts as the whole budget, and as a miss.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from loopwright.agents.controller import Controller, View
from loopwright.envs.episodes import HIT, OUTCOMES, EpisodeBatch, EpisodeSettings
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
    final_accuracy: float
    trace: tuple[dict[str, Any], ...] = ()

    @property
    def hit(self) -> bool:
        return self.outcome == OUTCOMES[HIT]


def run_controller(
    controller: Controller,
    tasks: Sequence[Task],
    seeds: Sequence[int],
    settings: EpisodeSettings | None = None,
    *,
    lanes: int = 64,
    traced: Sequence[tuple[str, int]] = (),
    ledgers: Path | None = None,
    on_run: Callable[[RunRecord], None] | None = None,
) -> list[RunRecord]:
    """Run every task with every seed.

    ``traced`` names the (task, seed) pairs whose trace is kept; ``ledgers`` is a folder for the audit log of every run.
    """
    shapes: dict[object, list[Task]] = {}
    for task in tasks:
        shapes.setdefault(task.shape_key, []).append(task)
    records = []
    for members in shapes.values():
        jobs = [(task, seed) for task in members for seed in seeds]
        for record in _run_jobs(controller, jobs, settings or EpisodeSettings(), lanes, set(traced), ledgers):
            records.append(record)
            if on_run is not None:
                on_run(record)
    return records


def _run_jobs(
    controller: Controller,
    jobs: list[tuple[Task, int]],
    settings: EpisodeSettings,
    lanes: int,
    traced: set[tuple[str, int]],
    ledgers: Path | None,
) -> list[RunRecord]:
    # A compiled tick exists per lane count, so the batch keeps its size even when there are fewer jobs.
    lanes = lanes if settings.compile else min(lanes, len(jobs))
    batch = EpisodeBatch(
        jobs[0][0], lanes, settings, looks=controller.looks, rolls_back=controller.rolls_back, ledgers=ledgers,
        author=Author(controller.name, controller.fingerprint),
    )  # fmt: skip
    waiting = list(reversed(jobs))
    current: list[tuple[Task, int] | None] = [None] * lanes
    traces: list[list[dict[str, Any]]] = [[] for _ in range(lanes)]
    decisions = torch.zeros(lanes)
    records: list[RunRecord] = []

    def start(free: list[int]) -> None:
        free = free[: len(waiting)]
        if free:
            chosen = [waiting.pop() for _ in free]
            for lane, job in zip(free, chosen, strict=True):
                current[lane], traces[lane] = job, []
            decisions[free] = 0
            batch.begin(free, [t for t, _ in chosen], [s for _, s in chosen], [controller.start] * len(free))

    start(list(range(lanes)))
    while any(job is not None for job in current):
        spent = (batch.cost / batch.budget).float()
        view = View(batch.observation, batch.plans, spent, decisions.clone(), batch.rate_scale, batch.step_ratio)
        plans = controller.decide(view)
        decision = batch.decide(plans)
        decisions += 1
        free = []
        for lane, job in enumerate(current):
            if job is None:
                continue
            task, seed = job
            if (task.name, seed) in traced:
                (plan,) = unstack_plans(plans[:, lane : lane + 1])
                cost, loss = float(batch.cost[lane]), float(decision.loss[lane])
                traces[lane].append({"cost": cost, "loss": loss, "plan": plan.as_dict()})
            if decision.done[lane]:
                hit, budget = int(decision.outcome[lane]) == HIT, float(batch.budget[lane])
                records.append(
                    RunRecord(
                        controller.name,
                        task.name,
                        seed,
                        OUTCOMES[int(decision.outcome[lane])],
                        float(batch.hit_cost[lane]) if hit else budget,
                        budget,
                        float(decision.loss[lane]),
                        float(decision.accuracy[lane]),
                        tuple(traces[lane]),
                    )
                )
                current[lane] = None
                free.append(lane)
        start(free)
    return records


def as_json(record: RunRecord) -> dict[str, Any]:
    """The record without its trace."""
    return {key: value for key, value in asdict(record).items() if key != "trace"}
