"""How an evaluation is shown: tables in the terminal and in Markdown, a picture, ``summary.json``, ``report.html``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.table
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from loopwright.agents.judging.evaluation import Evaluation
from loopwright.agents.judging.figures import (
    draw_profiles,
    draw_ratios,
    draw_runs,
    find_told_tasks,
    find_typical_tasks,
    write_svg,
)
from loopwright.agents.judging.tables import Table, make_method_table, make_summary_table, make_tables, make_task_table
from loopwright.envs.loop.storage import write_whole, writing

REPORT = ("summary.json", "tables.md", "evaluation.png", "report.html")


def make_rich(table: Table) -> rich.table.Table:
    """For the terminal."""
    shown = rich.table.Table(title=table.title, caption=table.note, title_justify="left", caption_justify="left")
    for number, column in enumerate(table.header):
        shown.add_column(column, no_wrap=number == 0, justify="left" if number == 0 else "right")
    for number, row in enumerate(table.rows):
        shown.add_row(*row, style="bold" if number in table.bold else "")
    return shown


def write_markdown(table: Table) -> str:
    """For a page in a repository."""
    lines = [f"### {table.title}", "", f"| {' | '.join(table.header)} |", f"|{'---|' * len(table.header)}"]
    for number, row in enumerate(table.rows):
        cells = [f"**{cell}**" if number in table.bold and cell else cell for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", table.note, ""])


def write_report(evaluation: Evaluation, folder: Path, provenance: dict[str, Any]) -> list[Path]:
    """Write ``summary.json``, ``tables.md``, ``evaluation.png`` and the self-contained ``report.html``."""
    paths = [folder / name for name in REPORT]
    write_whole(paths[0], json.dumps({"provenance": provenance, **evaluation.as_dict()}, indent=1) + "\n")
    write_whole(paths[1], "\n".join(write_markdown(table) for table in make_tables(evaluation)))
    drawn = list(dict.fromkeys(task for suite in evaluation.suites for task in find_typical_tasks(evaluation, suite)))
    with writing(paths[2]) as picture:
        draw_runs(evaluation, drawn).savefig(picture, dpi=100)
    write_whole(paths[3], write_html(evaluation, provenance))
    return paths


def write_html(evaluation: Evaluation, provenance: dict[str, Any]) -> str:
    """One page with everything in it: no scripts, no other files, nothing to be loaded."""
    environment = Environment(
        loader=PackageLoader("loopwright.agents.judging", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    runs = [
        (f"{task} ({suite})", Markup(write_svg(draw_runs(evaluation, [task]))))
        for suite in evaluation.suites
        for task in find_told_tasks(evaluation, suite)
    ]
    return environment.get_template("report.html.jinja").render(
        evaluation=evaluation,
        headlines=[evaluation.headline(group) for group in evaluation.groups],
        groups=[
            {
                "name": group,
                "slug": group.replace(" ", "-"),
                "methods": make_method_table(evaluation, group),
                "figures": [
                    (f"Cost ratios, {group}", Markup(write_svg(draw_ratios(evaluation, group)))),
                    (f"Performance profiles, {group}", Markup(write_svg(draw_profiles(evaluation, group)))),
                ],
                "tasks": make_task_table(evaluation, group) if group in evaluation.suites else None,
            }
            for group in evaluation.groups
        ],
        summary=make_summary_table(evaluation),
        runs=runs,
        provenance=json.dumps(provenance, indent=1),
        counted=_count(evaluation),
    )


def _count(evaluation: Evaluation) -> str:
    seeds = {r.seed for r in evaluation.records}
    trainings = {r.training for r in evaluation.records if r.method == evaluation.agent}
    tasks = {r.task for r in evaluation.records}
    return (
        f"{len(evaluation.records)} runs: {len(evaluation.methods)} methods, {len(tasks)} tasks, {len(seeds)} paired "
        f"seeds, {len(trainings)} independent training{'s' if len(trainings) > 1 else ''} of the agent"
    )


def print_tables(tables: Sequence[Table], console: Any) -> None:
    for table in tables:
        console.print(make_rich(table))
        console.print()
