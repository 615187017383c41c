"""Tune the competitors on the training suite, and store the winners with their provenance in agents/tuned.json.

Every kind of competitor gets the same number of quasi-random configurations, run on the same tasks with the same seeds.
"""

import json
import sys
from dataclasses import dataclass
from datetime import date

from tqdm import tqdm

from loopwright.agents.competitors import COMPETITORS, TUNED_FILE, TUNING_SEEDS, describe, tune
from loopwright.agents.controller import Controller
from loopwright.envs.episodes import EpisodeSettings
from loopwright.inner_tasks.suites import get_suite
from loopwright.inner_tasks.task import Task, get_tasks
from loopwright.scripts.run import compile_where_possible, run


@dataclass
class Config:
    kinds: tuple[str, ...] = tuple(COMPETITORS)
    """Kinds of competitor to tune; the stored winners of the others stay."""
    configurations: int = 64
    """Configurations tried per kind."""
    tasks: int = 24
    """Tasks of the training suite they are tried on."""


def tune_one(
    kind: str, configurations: int, tasks: list[Task], settings: EpisodeSettings
) -> tuple[Controller, float, int]:
    """``competitors.tune`` with a progress bar."""
    runs = configurations * len(tasks) * len(TUNING_SEEDS)
    with tqdm(total=runs, desc=kind, unit="run") as bar:
        return tune(kind, configurations, tasks, settings, on_run=lambda _: bar.update())


def main(config: Config) -> None:
    names = get_suite("train").tasks()[: config.tasks]
    settings = EpisodeSettings(compile=compile_where_possible())
    stored = json.loads(TUNED_FILE.read_text())["competitors"] if TUNED_FILE.exists() else {}
    for kind in config.kinds:
        winner, cost, decisions = tune_one(kind, config.configurations, get_tasks(names), settings)
        stored[kind] = {
            "settings": describe(winner),
            "geometric_budget_share": round(cost, 4),
            "decisions": decisions,
            "configurations": config.configurations,
            "tasks": len(names),
            "seeds": TUNING_SEEDS,
            "date": date.today().isoformat(),
        }
        print(f"{kind}: {cost:.3f} of the budget, {winner}", flush=True)
        competitors = {name: stored[name] for name in COMPETITORS if name in stored}
        TUNED_FILE.write_text(json.dumps({"competitors": competitors}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
