"""Find the target of every task of a suite, and store it with its provenance in inner_tasks/targets.json.

    loopwright calibrate --workers 2
    loopwright calibrate --tasks rosenbrock:0 grammar:3 --check

Resumes where it was interrupted: a task that has a target, or was dropped, is left alone unless --again is given.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch
from tqdm import tqdm

from loopwright.agents.judging.workers import work_apart
from loopwright.envs.engine.cost import measure_cost
from loopwright.envs.episode.calibration import CONFIGURATIONS, NEWEST, RERUN_SEED, RERUNS, SEARCH_SEED, Calibrator
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.holding import holding_file
from loopwright.inner_tasks.registry import find_family, get_shape
from loopwright.inner_tasks.suites import SEARCHED, get_suite, list_suites
from loopwright.inner_tasks.targets import TARGETS_FILE, StoredTargets, read_targets, write_targets
from loopwright.inner_tasks.task import Calibration, ShapeKey, Task
from loopwright.scripts.run import Workers, compile_where_possible, run

AT_ONCE = 5  # tasks that a worker is given, all of one shape; what an interruption can lose


@dataclass
class Config(Workers):
    suite: str = "all"
    """Suite to calibrate, or "all"."""
    tasks: tuple[str, ...] = ()
    """Tasks to calibrate instead, each family:seed."""
    again: bool = False
    """Also recompute tasks that already have a target."""
    check: bool = False
    """Recompute, store nothing, and fail where a target comes out differently (rounding apart)."""


Found = tuple[str, Calibration | None, str]  # a task, and its calibration or why there is none


def same(one: Calibration | None, other: Calibration | None) -> bool:
    """Whether two calibrations of a task agree, rounding apart: a compiled tick may add up in another order."""
    if one is None or other is None:
        return one is other
    return one.cost == other.cost and math.isclose(one.target, other.target, rel_tol=1e-3)


_CALIBRATORS: dict[tuple[ShapeKey, int, int, bool], Calibrator] = {}  # the last one: its lanes serve a whole shape


def make(name: str) -> Task:
    """The task, not kept in memory."""
    family, seed = find_family(name)
    return family.make_task(seed)


def calibrate_some(names: Sequence[str], decisions: int, search: int, compile: bool) -> list[Found]:
    """What a worker does with tasks of one shape."""
    key = get_shape(names[0]), decisions, search, compile
    if key not in _CALIBRATORS:
        _CALIBRATORS.clear()
        _CALIBRATORS[key] = Calibrator(make(names[0]), EpisodeSettings(compile=compile), decisions, search)
    return [(name, *_CALIBRATORS[key].calibrate(make(name))) for name in names]


def divide(names: Sequence[str], stored: StoredTargets, check: bool) -> list[tuple[list[str], int, int]]:
    """Tasks that a worker takes together, how long the search is, and which; the cheapest first, shape by shape."""
    lengths = {name: n for suite in list_suites().values() for name, n in suite.candidates().items()}
    alike: dict[tuple[Any, ...], list[str]] = {}
    for name in names:
        before = stored.targets.get(name)
        search = before.search if check and before else NEWEST
        decisions = before.decisions if check and before else lengths.get(name, SEARCHED)
        alike.setdefault((get_shape(name), decisions, search), []).append(name)
    cheapest_first = sorted(alike.items(), key=lambda item: measure_cost(item[0][0][0]).flops * item[0][1])
    return [
        (members[at : at + AT_ONCE], decisions, search)
        for (_, decisions, search), members in cheapest_first
        for at in range(0, len(members), AT_ONCE)
    ]


def calibrate_all(parts: Sequence[tuple[list[str], int, int]], workers: int) -> Iterator[list[Found]]:
    """What becomes of each part, as it is found."""
    compile = compile_where_possible()
    torch.set_num_threads(1)
    yield from work_apart(calibrate_some, ((*part, compile) for part in parts), workers)


def main(config: Config) -> int:
    with nullcontext() if config.check else holding_file(TARGETS_FILE):
        return calibrate_missing(config)


def calibrate_missing(config: Config) -> int:
    """Find, store and count the targets that are asked for; the exit status."""
    chosen = list_suites().values() if config.suite == "all" else [get_suite(config.suite)]
    names = list(config.tasks) or list(dict.fromkeys(name for suite in chosen for name in suite.candidates()))
    stored = read_targets()
    known = {*stored.targets, *stored.dropped}
    if config.check:
        todo = [name for name in names if name in known]
        if len(todo) < len(config.tasks):
            raise LoopwrightError(f"no target stored for {', '.join(sorted(set(config.tasks) - known))}")
    else:
        todo = [name for name in names if config.again or name not in known]
    different = []
    with config.working(), tqdm(total=len(todo), desc="calibrate", unit="task") as bar:
        for found in calibrate_all(divide(todo, stored, config.check), config.workers):
            bar.update(len(found))
            for name, calibration, why in found:
                bar.set_postfix_str(name)
                before = stored.targets.get(name)
                if config.check and not same(before, calibration):
                    different.append(f"{name}: stored {before or stored.dropped[name]}, found {calibration or why}")
                elif not config.check:
                    keep(stored, name, calibration, why)
            if not config.check:
                write_targets({**stored.provenance, str(NEWEST): describe_search()}, stored.targets, stored.dropped)
    if config.check:
        print("\n".join(different) or f"{len(todo)} tasks came out the same")
        return 1 if different else 0
    print(f"{len(stored.targets)} tasks have a target, {len(stored.dropped)} were dropped")
    for name, why in stored.dropped.items():
        print(f"  dropped {name}: {why}")
    return 0


def keep(stored: StoredTargets, name: str, calibration: Calibration | None, why: str) -> None:
    """Put what was found in the place of what was stored of a task."""
    stored.targets.pop(name, None)
    stored.dropped.pop(name, None)
    if calibration is None:
        stored.dropped[name] = why
    else:
        stored.targets[name] = calibration


def describe_search() -> dict[str, Any]:
    """Where the targets of the newest search come from."""
    settings = EpisodeSettings().as_json()
    return {
        "search": f"{CONFIGURATIONS} Sobol static configurations, {RERUNS} re-runs of the best",
        "seeds": {"search": SEARCH_SEED, "rerun": RERUN_SEED},
        "settings": {key: value for key, value in settings.items() if key not in ("compile", "device")},
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
