"""What the options of the commands accept: checked in one place, before anything is compiled, loaded or made.

An option of one name means the same in every command. Names (of suites, tasks, algorithms, ...) are checked where they
are looked up.
"""

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from loopwright.envs.loop.checks import (
    MOST_LANES,
    MOST_SAMPLES,
    MOST_SEED,
    MOST_THREADS,
    check_number,
    check_some,
    check_whole,
    say_value,
)
from loopwright.envs.loop.errors import LoopwrightError

MOST_WORKERS, MOST_RUNS, MOST_STEPS = 256, 100_000, 10**12
COUNTS: dict[str, tuple[int, int]] = {
    "lanes": (1, MOST_LANES), "workers": (1, MOST_WORKERS), "threads": (1, MOST_THREADS), "seeds": (1, MOST_RUNS),
    "seed": (0, MOST_SEED), "steps": (1, MOST_STEPS), "checkpoint_every": (1, MOST_STEPS), "samples": (1, MOST_STEPS),
    "draws": (1, MOST_RUNS), "tuning": (1, MOST_RUNS), "configurations": (0, MOST_RUNS), "tasks": (1, MOST_RUNS),
    "microbatch": (1, MOST_SAMPLES), "scale": (1, MOST_RUNS),
}  # fmt: skip
NUMBERS: dict[str, tuple[str, float, float]] = {
    "seconds": ("lie in [0.001, 3600]", 1e-3, 3600), "rate_spread": ("lie in [0, 2], orders of magnitude", 0, 2),
    "fields_spread": ("be a chance, in [0, 1]", 0, 1), "withheld": ("be a chance, in [0, 1]", 0, 1),
    "open_runs": ("be a chance, in [0, 1]", 0, 1), "plain_runs": ("be a chance, in [0, 1]", 0, 1),
}  # fmt: skip
FOLDERS = ("folder", "docs")
ONE_OR_MORE = ("bundles", "suite", "competitors", "kinds", "prices")  # where several may be named


def check_options(config: Any) -> None:
    """Raise ``LoopwrightError`` for an option of a command that cannot be; one that is None was left to the command."""
    for name in (field.name for field in fields(config)):
        value = getattr(config, name)
        if name in COUNTS and not isinstance(value, Sequence) and value is not None:
            check_whole(name, value, *COUNTS[name])
        elif name in NUMBERS:
            check_number(name, value, *NUMBERS[name])
        elif name in FOLDERS:
            check_folder(value)
        elif name in ONE_OR_MORE and not isinstance(value, str):
            check_some(name, value)


def check_folder(folder: Path) -> None:
    """Raise ``LoopwrightError`` where a folder, there or to be made, cannot be written to."""
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as problem:
        raise LoopwrightError(f"cannot write to the folder {say_value(str(folder))}: {problem.strerror}") from problem
    if not there.is_dir():
        raise LoopwrightError(f"{there} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise LoopwrightError(f"cannot write to the folder {there}; give another")
