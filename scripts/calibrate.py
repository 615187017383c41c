"""Find the target of every task of a suite, and store it with its provenance in inner_tasks/targets.json.

    loopwright calibrate
    loopwright calibrate --tasks rosenbrock:0 grammar:3 --check

Resumes where it was interrupted: a task that has a target, or was dropped, is left alone unless --again is given.
"""

import math
import sys
from dataclasses import dataclass
from datetime import date

import torch
from tqdm import tqdm

from loopwright.envs.episode.calibration import CONFIGURATIONS, DECISIONS, RERUN_SEED, RERUNS, SEARCH_SEED, Calibrator
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.inner_tasks.registry import find_family, get_task
from loopwright.inner_tasks.suites import get_suite, list_suites
from loopwright.inner_tasks.targets import read_targets, write_targets
from loopwright.inner_tasks.task import Calibration
from loopwright.scripts.run import compile_where_possible, run

WRITE_EVERY = 10  # tasks; what an interruption can lose


@dataclass
class Config:
    suite: str = "all"
    """Suite to calibrate, or "all"."""
    tasks: tuple[str, ...] = ()
    """Tasks to calibrate instead, each family:seed."""
    again: bool = False
    """Also recompute tasks that already have a target."""
    check: bool = False
    """Recompute, store nothing, and fail where a target comes out differently (rounding apart)."""
    decisions: int = DECISIONS
    """Length of the search, in decisions."""


def same(one: Calibration | None, other: Calibration | None) -> bool:
    """Whether two calibrations of a task agree, rounding apart: a compiled tick may add up in another order."""
    if one is None or other is None:
        return one is other
    return one.cost == other.cost and math.isclose(one.target, other.target, rel_tol=1e-3)


def main(config: Config) -> int:
    chosen = list_suites().values() if config.suite == "all" else [get_suite(config.suite)]
    names = list(config.tasks) or list(dict.fromkeys(name for suite in chosen for name in suite.candidates()))
    settings = EpisodeSettings(compile=compile_where_possible())
    stored = read_targets()
    known = {*stored.targets, *stored.dropped}
    if config.check:
        todo = [name for name in names if name in known]
        if len(todo) < len(config.tasks):
            raise LoopwrightError(f"no target stored for {', '.join(sorted(set(config.tasks) - known))}")
    else:
        todo = [name for name in names if config.again or name not in known]
    provenance = {
        "search": f"{CONFIGURATIONS} Sobol static configurations, {RERUNS} re-runs of the best",
        "seeds": {"search": SEARCH_SEED, "rerun": RERUN_SEED},
        "decisions": config.decisions,
        "settings": {key: value for key, value in settings.as_json().items() if key not in ("compile", "device")},
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }
    # One shape after the other: each needs a compiled tick, and lanes, which are then let go.
    shapes: dict[object, list[str]] = {}
    for name in todo:
        family, seed = find_family(name)
        shapes.setdefault(family.draw_shape(seed), []).append(name)
    different = []
    with tqdm(total=len(todo), desc="calibrate", unit="task") as bar:
        for members in shapes.values():
            calibrator = Calibrator(get_task(members[0]), settings, config.decisions)
            for name in members:
                bar.set_postfix_str(name)
                calibration, why = calibrator.calibrate(get_task(name))
                bar.update()
                if config.check:
                    before = stored.targets.get(name)
                    if not same(before, calibration):
                        different.append(f"{name}: stored {before or stored.dropped[name]}, found {calibration or why}")
                    continue
                stored.targets.pop(name, None)
                stored.dropped.pop(name, None)
                if calibration is None:
                    stored.dropped[name] = why
                else:
                    stored.targets[name] = calibration
                if bar.n % WRITE_EVERY == 0 or bar.n == len(todo):
                    write_targets(provenance, stored.targets, stored.dropped)
    if config.check:
        print("\n".join(different) or f"{len(todo)} tasks came out the same")
        return 1 if different else 0
    print(f"{len(stored.targets)} tasks have a target, {len(stored.dropped)} were dropped")
    for name, why in stored.dropped.items():
        print(f"  dropped {name}: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
