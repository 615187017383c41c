"""Tune the competitors on the training suite, and store the winners with their provenance in agents/tuned.json.

Every kind of competitor gets the same number of quasi-random configurations, run on the same tasks with the same seeds.
"""

import json
import sys
from dataclasses import dataclass
from datetime import date

from loopwright.agents.competitors import COMPETITORS, TUNED_FILE, TUNING_SEEDS, describe, tune
from loopwright.envs.episodes import EpisodeSettings
from loopwright.envs.lanes import compiler_available
from loopwright.inner_tasks.suites import get_suite
from loopwright.inner_tasks.task import get_tasks
from loopwright.scripts.run import run


@dataclass
class Config:
    configurations: int = 64
    """Configurations tried per kind of competitor."""
    tasks: int = 32
    """Tasks of the training suite they are tried on."""


def main(config: Config) -> None:
    names = get_suite("train").tasks()[: config.tasks]
    settings = EpisodeSettings(compile=compiler_available())
    found = {}
    for kind in COMPETITORS:
        winner, cost, decisions = tune(kind, config.configurations, get_tasks(names), settings)
        found[kind] = {"settings": describe(winner), "geometric_budget_share": round(cost, 4), "decisions": decisions}
        print(f"{kind}: {cost:.3f} of the budget, {winner}", flush=True)
    provenance = {"configurations": config.configurations, "tasks": names, "seeds": TUNING_SEEDS,
                  "date": date.today().isoformat()}  # fmt: skip
    TUNED_FILE.write_text(json.dumps({"provenance": provenance, "competitors": found}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
