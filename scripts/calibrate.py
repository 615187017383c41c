"""Find the target of every task of a suite, and store it with its provenance in inner_tasks/targets.json.

    loopwright calibrate --suite new

Resumes where it was interrupted: a task that has a target, or was dropped, is left alone unless --again is given.
"""

import sys
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import torch
from tqdm import tqdm

from loopwright.envs.calibration import CONFIGURATIONS, RERUN_SEED, RERUNS, SEARCH_SEED, Calibrator
from loopwright.envs.episodes import EpisodeSettings
from loopwright.inner_tasks.suites import get_suite, suites
from loopwright.inner_tasks.targets import read_targets, write_targets
from loopwright.inner_tasks.task import get_task
from loopwright.scripts.run import compile_where_possible, run


@dataclass
class Config:
    suite: str = "all"
    """Suite to calibrate, or "all"."""
    again: bool = False
    """Also recompute tasks that already have a target."""
    decisions: int = 40
    """Length of the search, in decisions."""


def main(config: Config) -> None:
    chosen = suites().values() if config.suite == "all" else [get_suite(config.suite)]
    settings = EpisodeSettings(compile=compile_where_possible())
    stored = read_targets()
    names = [name for suite in chosen for name in suite.candidates()]
    todo = [name for name in names if config.again or not (name in stored.targets or name in stored.dropped)]
    calibrators: dict[Any, Calibrator] = {}
    provenance = {
        "search": f"{CONFIGURATIONS} Sobol static configurations, {RERUNS} re-runs of the best",
        "seeds": {"search": SEARCH_SEED, "rerun": RERUN_SEED},
        "decisions": config.decisions,
        "settings": {key: value for key, value in asdict(settings).items() if key not in ("compile", "device")},
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }
    for done, name in enumerate(tqdm(todo, desc="calibrate", unit="task"), start=1):
        task = get_task(name)
        if task.shape_key not in calibrators:
            calibrators[task.shape_key] = Calibrator(task, settings, config.decisions)
        calibration, why = calibrators[task.shape_key].calibrate(task)
        stored.targets.pop(name, None)
        stored.dropped.pop(name, None)
        if calibration is None:
            stored.dropped[name] = why
        else:
            stored.targets[name] = calibration
        if done % 10 == 0 or done == len(todo):
            write_targets(provenance, stored.targets, stored.dropped)
    print(f"{len(stored.targets)} tasks have a target, {len(stored.dropped)} were dropped")
    for name, why in stored.dropped.items():
        print(f"  dropped {name}: {why}")


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
