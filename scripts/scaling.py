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
    phases = simulate(times, config.workers, config.scale)
    alone = sum(phase.seconds for phase in simulate(times, 1, config.scale))
    work, seconds = sum(phase.work for phase in phases), sum(phase.seconds for phase in phases)
    efficiency = work / (config.workers * seconds)
    if config.json:
        print(
            json.dumps(
                {"phases": [p._asdict() for p in phases], "seconds": seconds, "alone": alone, "efficiency": efficiency}
            )
        )
        return
    rows = tuple(
        (
            " and ".join(phase.kinds), str(phase.parts), f"{phase.work:.0f}", f"{phase.setup:.0f}",
            f"{phase.longest:.0f}", f"{phase.seconds:.0f}", f"{phase.work / (config.workers * phase.seconds):.0%}",
        )
        for phase in phases
    )  # fmt: skip
    columns = (
        "phase", "parts", "work in s", "compiling in s", "longest part in s", "until the last has ended in s",
        "efficiency",
    )  # fmt: skip
    print_tables([Table(f"{config.workers} workers", columns, rows)], Console(width=max(120, Console().width)))
    print(
        f"all phases: {seconds:.0f} s on {config.workers} workers, which are busy for {efficiency:.0%} of it; "
        f"one alone takes {alone:.0f} s, {alone / seconds:.1f} times as long"
    )


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
