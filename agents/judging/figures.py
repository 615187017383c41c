"""Figures of an evaluation: performance profiles, cost ratios with intervals, and runs with the plans beneath them."""

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from loopwright.agents.judging.contest import DRAWN_RUNS
from loopwright.agents.judging.evaluation import OPEN_LOOP, Evaluation
from loopwright.agents.judging.results import RunRecord
from loopwright.agents.judging.statistics import GEQ, R_MAX, SECONDS
from loopwright.envs.render import find_changed_fields, label_plainly, plot_plan
from loopwright.inner_tasks.registry import get_task

WIDTH = 4.8  # inches: what stays readable on a narrow screen
AGENT_COLOUR, RIVAL_COLOUR, OTHER_COLOUR = "tab:blue", "tab:orange", "0.6"


def draw_profiles(evaluation: Evaluation, group: str) -> Figure:
    """Share of tasks within a factor of the best method's cost, all methods; the agent and its rival stand out."""
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    axes = figure.subplots()
    for profile in sorted(evaluation.profiles[group], key=lambda p: p.method in (evaluation.agent, evaluation.rival)):
        at = [1.0, *(factor for factor, _ in profile.steps), R_MAX]
        share = [0.0, *(share for _, share in profile.steps)]
        share.append(share[-1])
        named = profile.method in (evaluation.agent, evaluation.rival)
        axes.step(
            at, share, where="post", color=_choose_colour(evaluation, profile.method), linewidth=2.2 if named else 0.9,
            label=f"{profile.method} ({profile.score:.2f})" if named else None,
        )  # fmt: skip
    axes.set(xlim=(1, R_MAX), ylim=(0, 1), xlabel="cost / lowest median cost of any method", ylabel="share of tasks")
    axes.set_title(f"Performance profiles, {group}", fontsize=10)
    axes.legend(fontsize=8, title="(score)", title_fontsize=8)
    return figure


def draw_ratios(evaluation: Evaluation, group: str) -> Figure:
    """Forest plot: the agent's cost over every method's, with intervals, in each unit there is."""
    others = evaluation.others
    figure = Figure(figsize=(WIDTH, 1.2 + 0.3 * len(others)), layout="constrained")
    axes = figure.subplots()
    for unit, shift, marker in ((GEQ, -0.12, "o"), (SECONDS, 0.12, "s")):
        if unit not in evaluation.units:
            continue
        for row, other in enumerate(others):
            ratio = evaluation.ratio(group, other, unit)
            axes.plot(
                [ratio.low, ratio.high], [row + shift] * 2, color=_choose_colour(evaluation, other), linewidth=1.4
            )
            axes.plot(
                ratio.point, row + shift, marker, color=_choose_colour(evaluation, other), markersize=5,
                markerfacecolor="white" if unit == SECONDS else None,
            )  # fmt: skip
        axes.plot([], [], marker, color="black", markerfacecolor="white" if unit == SECONDS else "black", label=unit)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    label_plainly(axes.xaxis)
    axes.set_yticks(range(len(others)), others, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"cost of the {evaluation.agent} / cost of the method (below 1: less)", fontsize=9)
    axes.set_title(f"Cost ratios with 95 % intervals, {group}", fontsize=10)
    axes.legend(fontsize=8)
    return figure


def draw_runs(evaluation: Evaluation, tasks: Sequence[str]) -> Figure:
    """A column per task: loss curves of the agent and its rival, and the plans that the agent chose beneath."""

    def drawn(method: str, task: str) -> list[RunRecord]:
        return [r for r in evaluation.records if (r.method, r.task) == (method, task) and r.trace][:DRAWN_RUNS]

    agent = [run for task in tasks for run in drawn(evaluation.agent, task)]
    fields = find_changed_fields([point.plan.as_dict() for run in agent for point in run.trace])
    figure = Figure(figsize=(WIDTH * len(tasks), 3.6 + 0.75 * len(fields)), layout="constrained")
    grid = figure.subplots(
        1 + len(fields), len(tasks), sharex="col", squeeze=False, height_ratios=[4] + [1] * len(fields)
    )
    for column, name in zip(grid.T, tasks, strict=True):
        calibration = get_task(name).calibration
        assert calibration is not None
        column[0].axhline(calibration.target, color="grey", linestyle="--", linewidth=1, label="target")
        for method in (evaluation.rival, evaluation.agent):
            runs = drawn(method, name)
            for run in runs:
                label = method if run is runs[0] else None
                colour = _choose_colour(evaluation, method)
                column[0].plot(
                    [p.cost for p in run.trace], [p.loss for p in run.trace], color=colour, alpha=0.8, label=label
                )
        column[0].set_yscale("log")
        label_plainly(column[0].yaxis)
        column[0].set_title(name, fontsize=10)
        column[0].legend(fontsize=8)
        column[0].set_ylabel("loss on unseen data", fontsize=9)
        for axes, field in zip(column[1:], fields, strict=True):
            for run in drawn(evaluation.agent, name):
                values = [getattr(point.plan, field) for point in run.trace]
                plot_plan(axes, [p.cost for p in run.trace], values, field, color=AGENT_COLOUR, alpha=0.6)
        column[-1].set_xlabel("cost (geq: samples forward and backward)", fontsize=9)
    return figure


def _choose_colour(evaluation: Evaluation, method: str) -> str:
    return {evaluation.agent: AGENT_COLOUR, evaluation.rival: RIVAL_COLOUR, OPEN_LOOP: "tab:green"}.get(
        method, OTHER_COLOUR
    )


def find_typical_tasks(evaluation: Evaluation, suite: str, count: int = 2) -> list[str]:
    """The ``count`` tasks of a suite in the middle, ordered by the cost ratio between the agent and its rival."""
    names = [row.task for row in evaluation.task_rows[suite]]
    first = max(0, (len(names) - count) // 2)
    return names[first : first + count]


def find_told_tasks(evaluation: Evaluation, suite: str) -> list[str]:
    """The best, two typical and the worst task of a suite."""
    names = [row.task for row in evaluation.task_rows[suite]]
    return list(dict.fromkeys([names[0], *find_typical_tasks(evaluation, suite), names[-1]]))


def write_svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element, the same for the same figure."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "loopwright"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
