"""Compare two methods whose runs are on record, on the tasks and seeds that both were run on.

    loopwright compare runs/before runs/after
    loopwright compare runs/evaluation runs/evaluation:SOAP

Each is a folder that loopwright evaluate wrote, with the name of a method after a colon; without, its agent.
"""

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from loopwright.agents.judging.entrants import AGENT
from loopwright.agents.judging.judge import RESULTS, TIMINGS
from loopwright.agents.judging.report import print_tables
from loopwright.agents.judging.results import RunRecord, read_results
from loopwright.agents.judging.statistics import (
    GEQ,
    SECONDS,
    FinalMetric,
    Ratio,
    TaskRow,
    compare_costs,
    compare_final_metric,
    compare_tasks,
    state_verdict,
)
from loopwright.agents.judging.tables import Table
from loopwright.agents.judging.timing import Timing, convert_to_seconds, estimate_timing_variance, read_timings
from loopwright.agents.judging.wording import say_interval
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.scripts.run import run


@dataclass
class Config:
    first: Annotated[str, tyro.conf.Positional]
    """FOLDER or FOLDER:METHOD."""
    second: Annotated[str, tyro.conf.Positional]
    """What it is compared with."""
    json: bool = False
    """Print the result as JSON instead of tables."""


@dataclass(frozen=True)
class Comparison:
    """The first method against the second: ratios in every unit that both were measured in, task by task, in a word."""

    ratios: tuple[Ratio, ...]
    tasks: tuple[TaskRow, ...]
    final_metric: FinalMetric
    verdict: str


def compare(first: str, second: str) -> Comparison:
    """Raises ``LoopwrightError`` for a folder or method that is not there, or methods with no run in common."""
    (ours, our_timings), (theirs, their_timings) = _read(first, "first"), _read(second, "second")
    common = {r.key[2:] for r in ours} & {r.key[2:] for r in theirs}
    if not common:
        raise LoopwrightError(f"{first} and {second} have no task and seed in common")
    runs = [r for r in (*ours, *theirs) if r.key[2:] in common]
    ratios = [compare_costs(runs, "common", "first", "second")]
    both = {t.task for t in our_timings} & {t.task for t in their_timings}
    if both >= {r.task for r in runs}:
        timed = convert_to_seconds(runs, [*our_timings, *their_timings])
        extra = estimate_timing_variance([*our_timings, *their_timings], "first", "second", {r.task for r in runs})
        ratios.append(compare_costs(timed, "common", "first", "second", unit=SECONDS, extra=extra))
    return Comparison(
        tuple(ratios),
        tuple(compare_tasks(runs, "first", "second")),
        compare_final_metric(runs, "first", "second"),
        state_verdict(ratios),
    )


def _read(name: str, label: str) -> tuple[list[RunRecord], list[Timing]]:
    """The runs and timings of one method, under the name ``label``."""
    folder, _, method = name.partition(":")
    method = method or AGENT
    if Path(folder).is_file():
        raise LoopwrightError(f"{folder} is a file; give a folder that loopwright evaluate wrote")
    _, records = read_results(Path(folder) / RESULTS)
    own = [replace(r, method=label) for r in records if r.method == method]
    if not own:
        known = ", ".join(sorted({r.method for r in records}))
        raise LoopwrightError(f"{folder} has no runs of {method!r}; it has {known}")
    timings = read_timings(Path(folder) / TIMINGS) if (Path(folder) / TIMINGS).exists() else []
    return own, [replace(t, method=label) for t in timings if t.method == method]


def tables(comparison: Comparison, first: str, second: str) -> list[Table]:
    rows = [(r.unit, say_interval(r), f"{r.hit_rate:.0%}", f"{r.against_hit_rate:.0%}") for r in comparison.ratios]
    note = f"{first}: {comparison.verdict}. Final metric {comparison.final_metric}"
    tasks = tuple(
        (row.task, say_interval(row.ratio), f"{row.p:.3f}", f"{row.holm:.3f}", row.outcome)
        for row in sorted(comparison.tasks, key=lambda row: row.ratio.point)
    )
    return [
        Table(f"{first} / {second}", ("unit", "cost ratio", "hits", "hits of the second"), tuple(rows), note),
        Table("task by task", ("task", f"cost ratio, {GEQ}", "p", "p, Holm", "outcome"), tasks),
    ]


def main(config: Config) -> None:
    comparison = compare(config.first, config.second)
    if config.json:
        print(json.dumps(asdict(comparison)))
    else:
        print_tables(tables(comparison, config.first, config.second), Console(width=max(110, Console().width)))


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
