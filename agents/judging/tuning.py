"""Tuning: which of a competitor's candidates does best on the training suite, all on the same tasks and seeds.

By successive halving (Jamieson & Talwalkar 2016): all candidates run on the tasks that are cheapest to run, the better
ones on all of them, and the best of these once more, from another seed.
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
CHEAPEST_TASKS = 8  # that all candidates run on
KEPT = 4  # one in so many goes on
EDGE = 0.05  # of a range


class Round(NamedTuple):
    """Candidates that run on some tasks, from a seed each has not had."""

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
    cheapest = sorted(tasks, key=lambda task: measure_cost(task.model).flops)[:CHEAPEST_TASKS]
    better = max(1, candidates // KEPT)
    best = max(1, better // KEPT)
    return [
        Round(candidates, list(cheapest), TUNING_SEEDS[0]),
        Round(better, list(tasks), TUNING_SEEDS[0]),
        Round(best, list(tasks), TUNING_SEEDS[1]),
    ]


def tune_competitor(
    tried: Sequence[Controller],
    tasks: Sequence[Task],
    settings: EpisodeSettings,
    *,
    on_run: Callable[[RunRecord], None] | None = None,
) -> Tuned:
    """The best of the controllers on these tasks."""
    left, shares, spent = list(range(len(tried))), dict.fromkeys(range(len(tried)), 0.0), 0.0
    previous: dict[int, list[RunRecord]] = {}
    for number, own in enumerate(plan_rounds(len(tried), tasks)):
        left = sorted(left, key=shares.__getitem__)[: own.candidates]
        jobs = [Job(tried[at], task, own.seed) for at in left for task in own.tasks]
        records = run_jobs(jobs, settings, on_run=on_run)
        spent += sum(record.cost for record in records)
        count = len(own.tasks)
        found = {at: records[position * count : (position + 1) * count] for position, at in enumerate(left)}
        # The last round's runs count beside those of the one before, which were on the same tasks.
        previous = {at: (previous[at] if number == 2 else []) + runs for at, runs in found.items()}
        shares = {at: average_share(runs) for at, runs in previous.items()}
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
