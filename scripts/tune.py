"""Tune the competitors on the training suite, and store the winners with their provenance in tuned.json.

Every competitor's quasi-random configurations run on the same tasks with the same seeds, under each price list, by
successive halving.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from tqdm import tqdm

from loopwright.agents.controllers.competitors import TUNABLE, find_competitor
from loopwright.agents.controllers.tuned import (
    TUNED_FILE,
    TUNED_LISTS,
    describe_controller,
    read_tuned_lists,
    restore_controller,
)
from loopwright.agents.judging.results import RunRecord
from loopwright.agents.judging.tuning import TUNING_SEEDS, find_edges, plan_rounds, tune_competitor
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.holding import holding_file
from loopwright.envs.loop.storage import write_whole
from loopwright.inner_tasks.registry import get_tasks
from loopwright.inner_tasks.suites import get_suite
from loopwright.scripts.run import Workers, compile_where_possible, run


@dataclass
class Config(Workers):
    kinds: tuple[str, ...] = tuple(TUNABLE)
    """Competitors to tune; the stored winners of the others stay."""
    prices: tuple[str, ...] = TUNED_LISTS
    """Price lists to tune them under."""
    configurations: int = 0
    """Configurations tried of each; 0 takes the number that stands with the competitor."""
    tasks: int = 24
    """Tasks of the suite they are tried on: train, or what stands with the competitor."""
    missing: bool = False
    """Leave alone what was tuned over as many configurations and tasks already: to go on after an interruption."""


class Counted:
    """Moves a progress bar by one for every run."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def __call__(self, record: RunRecord) -> None:
        self.bar.update()


def list_fixed(tried: Sequence[Any]) -> list[str]:
    """The fields of the plan that all candidates share: what was not searched."""
    plans = [controller.start.as_json() for controller in tried]
    return [f"{name} {value}" for name, value in plans[0].items() if all(plan[name] == value for plan in plans)]


def main(config: Config) -> None:
    for prices in config.prices:
        if prices not in TUNED_LISTS:
            raise LoopwrightError(f"prices must be among {', '.join(TUNED_LISTS)}; got {prices}")
    with holding_file(TUNED_FILE), config.working():
        tune_all(config)


def tune_all(config: Config) -> None:
    """Tune every competitor that is asked for, and store each winner as it is found."""
    for name, prices in ((name, prices) for name in config.kinds for prices in config.prices):
        competitor = find_competitor(name)
        names = get_suite(competitor.suite).tasks()[: config.tasks]
        configurations = config.configurations or competitor.configurations
        stored = read_tuned_lists().get(prices, {})
        before, constant = stored.get(name), stored.get("constant")
        if config.missing and before and before["configurations"] >= configurations and before["tasks"] >= len(names):
            continue
        settings = EpisodeSettings(compile=compile_where_possible(), prices=prices)
        best = restore_controller("constant", constant["settings"]).start if constant else None
        tried = list(competitor.candidates(configurations, best))
        tasks = get_tasks(names)
        runs = sum(own.runs for own in plan_rounds(len(tried), tasks))
        with tqdm(total=runs, desc=f"{name}, {prices}", unit="run") as bar:
            winner, share, decisions = tune_competitor(
                tried, tasks, settings, on_run=Counted(bar), workers=config.workers
            )
        lists = read_tuned_lists()
        lists.setdefault(prices, {})[name] = {
            "settings": describe_controller(winner),
            "geometric_budget_share": round(share, 4),
            "decisions": decisions,
            "configurations": len(tried),
            "suite": competitor.suite,
            "tasks": len(names),
            "seeds": TUNING_SEEDS,
            "date": date.today().isoformat(),
        }
        print(f"{name}, {prices}: {share:.3f} of the budget, {winner}", flush=True)
        print(f"  held fixed: {', '.join(list_fixed(tried))}", flush=True)
        for setting, value, low, high in find_edges(winner, tried):
            print(f"  at the edge: {setting} {value:g} of {low:g} to {high:g}; widen its range", flush=True)
        ordered = {own: {n: lists[own][n] for n in TUNABLE if n in lists[own]} for own in TUNED_LISTS if own in lists}
        write_whole(TUNED_FILE, json.dumps(ordered, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
