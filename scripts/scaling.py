"""Say how an evaluation would be divided among many workers, from how long its parts took.

    loopwright scaling runs/evaluation --workers 64
    loopwright scaling runs/one-seed --workers 64 --scale 20

The folder is one that loopwright evaluate wrote. Parts are cut and given out as evaluate does it, each with what it
took there; timings, which are taken one after another on an idle machine, do not count.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from loopwright.agents.judging.parts import PARTS, read_parts, simulate
from loopwright.agents.judging.report import print_tables
from loopwright.agents.judging.tables import Table
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.scripts.run import run


@dataclass
class Config:
    folder: Annotated[Path, tyro.conf.Positional]
    """That an evaluation wrote."""
    workers: int = 64
    """Of the same speed as those that it ran on."""
    scale: int = 1
    """As if there had been so many times the seeds."""
    json: bool = False
    """Print the result as JSON instead of a table."""


def main(config: Config) -> None:
    times = read_parts(config.folder / PARTS)
    if not times:
        raise LoopwrightError(f"{config.folder / PARTS} holds no part: nothing was left to be done when it was written")
    schedule = simulate(times, config.workers, config.scale)
    alone = simulate(times, 1, config.scale).seconds
    busy = schedule.work / (config.workers * schedule.seconds)
    if config.json:
        print(json.dumps({**schedule._asdict(), "alone": alone, "efficiency": busy}))
        return
    columns = (
        "parts",
        "work in s",
        "compiling in s",
        "longest part in s",
        "until the last has ended in s",
        "efficiency",
    )
    row = (str(schedule.parts), *(f"{seconds:.0f}" for seconds in schedule[1:]), f"{busy:.0%}")
    print_tables([Table(f"{config.workers} workers", columns, (row,))], Console(width=max(120, Console().width)))
    print(
        f"{config.workers} workers are busy for {busy:.0%} of {schedule.seconds:.0f} s; "
        f"one alone takes {alone:.0f} s, {alone / schedule.seconds:.1f} times as long"
    )


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
