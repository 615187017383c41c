"""Tuning: which of a competitor's candidates does best on the training suite, all on the same tasks and seeds.

By successive halving (Jamieson & Talwalkar 2016): all candidates run on a few tasks that are cheap to run, each of
another family; the better ones on one of every cheap family, the better of these on the other tasks too, and the best
on all tasks once more, from another seed. All runs of a candidate count.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from loopwright.agents.judging.results import RunRecord
from loopwright.agents.judging.runner import Job, run_jobs
from loopwright.agents.judging.statistics import average_share
from loopwright.envs.engine.cost import measure_cost
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.controller import Controller
from loopwright.inner_tasks.task import Task

TUNING_SEEDS = (9_000_000, 9_000_001)
CHEAP_FAMILIES = 10  # a task of each is what the first two rounds run on
FIRST_TASKS = 4
KEPT = (4, 4, 2)  # one candidate in so many goes on after the first, the second and the third round
EDGE = 0.05  # of a range


class Round(NamedTuple):
    """So many candidates run on some tasks, from a seed they have not had there."""

    candidates: int
    tasks: list[Task]
    seed: int

    @property
    def runs(self) -> int:
        return self.candidates * len(self.tasks)


class Tuned(NamedTuple):
    """The best candidate, its geometric share of the budget in its last rounds, and the decisions all of them took."""

    winner: Controller
    share: float
    decisions: int


def plan_rounds(candidates: int, tasks: Sequence[Task]) -> list[Round]:
    """What a search of so many candidates runs."""
    of_family: dict[str, Task] = {}
    for task in sorted(tasks, key=lambda task: measure_cost(task.model).flops):
        of_family.setdefault(task.name.split(":")[0], task)
    cheap = list(of_family.values())[:CHEAP_FAMILIES]
    first = cheap[:: math.ceil(len(cheap) / FIRST_TASKS)]
    rounds = [Round(candidates, first, TUNING_SEEDS[0])]
    for kept, own, seed in (
        (KEPT[0], [task for task in cheap if task not in first], TUNING_SEEDS[0]),
        (KEPT[1], [task for task in tasks if task not in cheap], TUNING_SEEDS[0]),
        (KEPT[2], list(tasks), TUNING_SEEDS[1]),
    ):
        rounds.append(Round(max(1, rounds[-1].candidates // kept), own, seed))
    return rounds


def tune_competitor(
    tried: Sequence[Controller],
    tasks: Sequence[Task],
    settings: EpisodeSettings,
    *,
    on_run: Callable[[RunRecord], None] | None = None,
    workers: int = 1,
) -> Tuned:
    """The best of the controllers on these tasks; ``workers`` as in ``run_jobs``."""
    left, shares = list(range(len(tried))), dict.fromkeys(range(len(tried)), 0.0)
    runs: dict[int, list[RunRecord]] = {at: [] for at in left}
    for own in plan_rounds(len(tried), tasks):
        left = sorted(left, key=shares.__getitem__)[: own.candidates]
        jobs = [Job(tried[at], task, own.seed) for at in left for task in own.tasks]
        records = iter(run_jobs(jobs, settings, on_run=on_run, workers=workers))
        for at in left:
            runs[at] += [next(records) for _ in own.tasks]
        shares = {at: average_share(runs[at]) for at in left}
    spent = sum(record.cost for own in runs.values() for record in own)
    best = min(shares, key=shares.__getitem__)
    return Tuned(tried[best], shares[best], round(spent / (settings.ticks_per_decision * settings.microbatch)))


def find_edges(winner: Any, tried: Sequence[Any]) -> list[tuple[str, float, float, float]]:
    """What of a winner lies at the edge of what was tried: the setting, its value, and the range.

    Of settings that were drawn from a continuum, among the candidates of the same optimizer: the outer ``EDGE`` of the
    range, in logarithms.
    """
    alike = [own for own in tried if own.start.optimizer == winner.start.optimizer]
    found = []
    for name, value in _list_settings(winner).items():
        values = sorted({_list_settings(own)[name] for own in alike})
        if len(values) > max(8, len(alike) / 2) and values[0] > 0:
            low, high = math.log(values[0]), math.log(values[-1])
            if not EDGE < (math.log(value) - low) / (high - low) < 1 - EDGE:
                found.append((name, value, values[0], values[-1]))
    return found


def _list_settings(controller: Any) -> dict[str, float]:
    settings = getattr(controller, "settings", {})
    return {"learning_rate": controller.start.learning_rate, **{name: float(value) for name, value in settings.items()}}
