"""Tune the competitors on the training suite, and store the winners with their provenance in tuned.json.

Every competitor's quasi-random configurations run on the same tasks with the same seeds.
"""

import json
import sys
from dataclasses import dataclass
from datetime import date
from typing import Any

from tqdm import tqdm

from loopwright.agents.controllers.competitors import COMPETITORS, find_competitor
from loopwright.agents.controllers.tuned import TUNED_FILE, describe_controller, read_tuned
from loopwright.agents.judging.results import RunRecord
from loopwright.agents.judging.tuning import TUNING_SEEDS, tune_competitor
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.inner_tasks.registry import get_tasks
from loopwright.inner_tasks.suites import get_suite
from loopwright.scripts.run import compile_where_possible, run


@dataclass
class Config:
    kinds: tuple[str, ...] = tuple(COMPETITORS)
    """Competitors to tune; the stored winners of the others stay."""
    configurations: int = 0
    """Configurations tried of each; 0 takes the number that stands with the competitor."""
    tasks: int = 24
    """Tasks of the training suite they are tried on."""


class Counted:
    """Moves a progress bar by one for every run."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def __call__(self, record: RunRecord) -> None:
        self.bar.update()


def main(config: Config) -> None:
    names = get_suite("train").tasks()[: config.tasks]
    settings = EpisodeSettings(compile=compile_where_possible())
    for name in config.kinds:
        competitor = find_competitor(name)
        tried = list(competitor.candidates(config.configurations or competitor.configurations))
        with tqdm(total=len(tried) * len(names) * len(TUNING_SEEDS), desc=name, unit="run") as bar:
            winner, cost, decisions = tune_competitor(tried, get_tasks(names), settings, on_run=Counted(bar))
        found = read_tuned() if TUNED_FILE.exists() else {}
        found[name] = {
            "settings": describe_controller(winner),
            "geometric_budget_share": round(cost, 4),
            "decisions": decisions,
            "configurations": len(tried),
            "tasks": len(names),
            "seeds": TUNING_SEEDS,
            "date": date.today().isoformat(),
        }
        print(f"{name}: {cost:.3f} of the budget, {winner}", flush=True)
        ordered = {name: found[name] for name in COMPETITORS if name in found}
        TUNED_FILE.write_text(json.dumps({"competitors": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
