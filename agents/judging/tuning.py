"""Tuning: which of a competitor's candidates does best on the training suite, all on the same tasks and seeds."""

from collections.abc import Callable

from loopwright.agents.judging.results import RunRecord
from loopwright.agents.judging.runner import Job, run_jobs
from loopwright.agents.judging.statistics import average_share
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.controller import Controller
from loopwright.inner_tasks.task import Task

TUNING_SEEDS = (9_000_000, 9_000_001)


def tune_competitor(
    tried: list[Controller],
    tasks: list[Task],
    settings: EpisodeSettings,
    *,
    on_run: Callable[[RunRecord], None] | None = None,
) -> tuple[Controller, float, int]:
    """The best of the controllers on these tasks, its geometric cost, and the decisions all of them took."""
    each = len(tasks) * len(TUNING_SEEDS)
    jobs = [Job(controller, task, seed) for controller in tried for task in tasks for seed in TUNING_SEEDS]
    records = run_jobs(jobs, settings, on_run=on_run)
    costs = [average_share(records[number * each : (number + 1) * each]) for number in range(len(tried))]
    best = min(range(len(tried)), key=costs.__getitem__)
    spent = sum(record.cost for record in records) / (settings.ticks_per_decision * settings.microbatch)
    return tried[best], costs[best], round(spent)
