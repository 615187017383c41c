"""What an evaluation shows: a terminal table, ``evaluation.json``, and a picture of what the agent did."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib.ticker
from matplotlib.figure import Figure
from rich.table import Table

from loopwright.agents.competitors import geometric_cost
from loopwright.agents.evaluation import RunRecord, as_json
from loopwright.agents.statistics import Ratio, cost_ratio, hit_rate
from loopwright.envs.render import changed_fields, plot_plan
from loopwright.inner_tasks.task import get_task

ALL_UNSEEN = "all unseen"


@dataclass(frozen=True)
class Evaluation:
    """All runs of an evaluation, and which suite each task belongs to."""

    agent: str
    records: tuple[RunRecord, ...]
    suites: dict[str, tuple[str, ...]]

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(r.method for r in self.records))

    def of(self, tasks: Sequence[str]) -> list[RunRecord]:
        return [r for r in self.records if r.task in tasks]

    @cached_property
    def ratios(self) -> list[Ratio]:
        """The agent against every other method: per suite, over all suites together, and per task."""
        groups = dict(self.suites)
        if len(groups) > 1:
            groups[ALL_UNSEEN] = tuple(task for tasks in self.suites.values() for task in tasks)
        groups |= {task: (task,) for tasks in self.suites.values() for task in tasks}
        others = [method for method in self.methods if method != self.agent]
        return [
            cost_ratio(self.of(tasks), name, self.agent, other) for name, tasks in groups.items() for other in others
        ]

    def as_dict(self, provenance: dict[str, Any]) -> dict[str, Any]:
        return {
            "provenance": provenance,
            "suites": {name: list(tasks) for name, tasks in self.suites.items()},
            "ratios": [ratio.as_dict() for ratio in self.ratios],
            "runs": [as_json(record) for record in self.records],
        }


def write_json(evaluation: Evaluation, path: Path, provenance: dict[str, Any]) -> None:
    path.write_text(json.dumps(evaluation.as_dict(provenance), indent=1) + "\n")


def ratio_table(evaluation: Evaluation) -> Table:
    """Cost of the agent as a ratio to each other method's, per group of tasks, with intervals and hit rates."""
    ratios = evaluation.ratios
    others = list(dict.fromkeys(r.against for r in ratios))
    table = Table(
        title=f"cost to target: {evaluation.agent} / competitor (below 1: the agent needs less; 95 % interval)"
    )
    table.add_column("tasks", no_wrap=True)
    table.add_column(f"hits: {evaluation.agent}", justify="right")
    for other in others:
        table.add_column(f"vs {other}", justify="right", no_wrap=True)
    groups = list(dict.fromkeys(r.suite for r in ratios))
    named = {*evaluation.suites, ALL_UNSEEN}
    for group in groups:
        row = {r.against: r for r in ratios if r.suite == group}
        cells = [f"{r.point:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in row.values()]
        rate = next(iter(row.values())).hit_rate
        table.add_row(group, f"{rate:.0%}", *cells, style="bold" if group in named else "", end_section=group in named)
    rates = [f"{hit_rate(evaluation.records, other):.0%}" for other in others]
    table.add_row("hits: competitor", "", *rates)
    return table


def draw(evaluation: Evaluation, rival: str, tasks: Sequence[str], path: Path) -> None:
    """For each task a column: loss curves of the agent and of ``rival``, and the plan the agent chose over time."""
    drawn = [r for r in evaluation.records if r.method == evaluation.agent and r.task in tasks]
    fields = changed_fields([point["plan"] for run in drawn for point in run.trace])
    figure = Figure(figsize=(4.6 * len(tasks), 4 + len(fields)), dpi=110, layout="constrained")
    grid = figure.subplots(
        1 + len(fields), len(tasks), sharex="col", squeeze=False, height_ratios=[4] + [1] * len(fields)
    )
    for column, name in zip(grid.T, tasks, strict=True):
        calibration = get_task(name).calibration
        assert calibration is not None
        column[0].axhline(calibration.target, color="grey", linestyle="--", linewidth=1, label="target")
        for method, colour in ((rival, "tab:orange"), (evaluation.agent, "tab:blue")):
            runs = [r for r in evaluation.records if (r.method, r.task) == (method, name) and r.trace]
            for run in runs:
                costs = [point["cost"] for point in run.trace]
                label = method if run is runs[0] else None
                column[0].plot(costs, [point["loss"] for point in run.trace], color=colour, alpha=0.8, label=label)
        column[0].set_yscale("log")
        column[0].yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
        column[0].yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        column[0].set_title(name)
        column[0].legend(fontsize=8)
        column[0].set_ylabel("loss on unseen data")
        agent_runs = [r for r in evaluation.records if (r.method, r.task) == (evaluation.agent, name) and r.trace]
        for axes, field in zip(column[1:], fields, strict=True):
            for run in agent_runs:
                costs = [point["cost"] for point in run.trace]
                plot_plan(axes, costs, [point["plan"][field] for point in run.trace], field)
        column[-1].set_xlabel("cost (geq: samples forward and backward)")
    figure.suptitle(f"{evaluation.agent} and {rival}: loss, and the plan the {evaluation.agent} chose")
    figure.savefig(path)


def typical_tasks(evaluation: Evaluation, suite: str, rival: str, count: int = 2) -> list[str]:
    """The ``count`` tasks of a suite in the middle, ordered by the cost ratio between the agent and ``rival``."""
    ratios = [r for r in evaluation.ratios if r.against == rival and r.suite in evaluation.suites[suite]]
    names = [r.suite for r in sorted(ratios, key=lambda r: r.point)]
    first = max(0, (len(names) - count) // 2)
    return names[first : first + count]


def best_competitor(evaluation: Evaluation, among: Sequence[str]) -> str:
    """The one of ``among`` with the lowest geometric cost over these runs; used only to choose what to draw."""
    return min(among, key=lambda m: geometric_cost([r for r in evaluation.records if r.method == m]))
