"""Who needed how much: tables and a figure of a contest's trials."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from loopwright.agents.judging.results import RunRecord
from loopwright.agents.judging.statistics import SECONDS, Ratio, compare_costs, judge_ratios
from loopwright.agents.judging.tables import Table
from loopwright.agents.judging.wording import say_interval, say_joint
from loopwright.scripts.real_programs.rivals import RIVALS, TUNED
from loopwright.scripts.real_programs.trial import TrainingTrial

SAMPLES = "samples"
UNITS = (SAMPLES, SECONDS)
PAGE = """# Real programs

Written by `loopwright programs`. Five ordinary PyTorch programs (`scripts/real_programs`), each trained until the loss
on judged data is at most what AdamW with a cosine, the best of {tuning} settings, has reached after 80 % of its run
(the median of its seeds). Costs are ratios to that tuned cosine's, geometric mean over programs and {seeds} paired
seeds with a 95 % interval, below 1 is less; a miss counts as the whole run. Seconds are iterations times what one
takes: processor time of one thread, with all that steering does inside, its looks at watched data included, in whole
runs of everybody by turns, the median of {rounds} rounds. "From 10 times its rate": it starts from ten times the
learning rate that tuning found. Steered by {policy}.

![Loss over seconds](programs.png)
"""
DRAWN = ("AdamW + cosine", "AdamW, steered", "loopwright.optimizer, steered")


def cut_at(trial: TrainingTrial, target: float) -> TrainingTrial:
    """The trial as if it had ended where it reached the ``target``."""
    reached = next((at for at, (_, _, loss) in enumerate(trial.curve) if loss <= target), None)
    if reached is None:
        return replace(trial, purpose="contest", target=target)
    iterations, seconds, _ = trial.curve[reached]
    per_iteration = trial.samples / trial.curve[-1][0]
    samples, curve = round(per_iteration * iterations), trial.curve[: reached + 1]
    return replace(trial, purpose="contest", target=target, hit=True, samples=samples, seconds=seconds, curve=curve)


def retime(trial: TrainingTrial, pace: float) -> TrainingTrial:
    """The trial with so many seconds for an iteration, instead of those it took when it was run."""
    curve = tuple((iterations, pace * iterations, loss) for iterations, _, loss in trial.curve)
    return replace(trial, seconds=curve[-1][1], curve=curve)


def compare_rivals(trials: Sequence[TrainingTrial], programs: Sequence[str]) -> dict[str, dict[str, list[Ratio]]]:
    """Each rival's cost over the tuned cosine's, in both units, by program and over all of them."""
    found: dict[str, dict[str, list[Ratio]]] = {}
    for group in ["all programs", *programs]:
        chosen = [t for t in trials if group in ("all programs", t.program)]
        records: dict[str, list[RunRecord]] = {unit: [t.as_record(unit) for t in chosen] for unit in UNITS}
        found[group] = {
            rival: [compare_costs(records[unit], group, rival, TUNED, unit=unit) for unit in UNITS]
            for rival in RIVALS if rival != TUNED
        }  # fmt: skip
    return found


def tabulate_ratios(ratios: dict[str, dict[str, list[Ratio]]]) -> list[Table]:
    """A table for all programs, and one for each."""
    header = ("who trains", "hits", SAMPLES, "where both hit", SECONDS, "where both hit", "against the tuned cosine")
    return [
        Table(
            f"{group} (the tuned cosine hits {next(iter(own.values()))[0].against_hit_rate:.0%})",
            header,
            tuple(
                (rival, f"{both[0].hit_rate:.0%}", say_interval(both[0]), say_joint(both[0]), say_interval(both[1]),
                 say_joint(both[1]), judge_ratios(both))
                for rival, both in own.items()
            ),
        )
        for group, own in ratios.items()
    ]  # fmt: skip


def write_contest_page(tables: Sequence[Table], provenance: dict[str, Any]) -> str:
    """The page beside the figure, in Markdown."""
    lines = [PAGE.format(**provenance)]
    for table in tables:
        lines += [f"## {table.title}", "", "| " + " | ".join(table.header) + " |", "|---" * len(table.header) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
        lines += [""]
    return "\n".join(lines)


def draw_curves(trials: Sequence[TrainingTrial], programs: Sequence[str], seed: int) -> Figure:
    """Loss over seconds of one seed, a panel each: good starts drawn through, bad ones dashed or dotted."""
    figure = Figure(figsize=(4.2 * len(programs), 3.4), layout="constrained")
    for axes, program in zip(figure.subplots(1, len(programs), squeeze=False)[0], programs, strict=True):
        own = [t for t in trials if t.program == program and t.seed == seed and t.rival.startswith(DRAWN)]
        for trial in own:
            kind = next(name for name in DRAWN if trial.rival.startswith(name))
            style = "--" if "10 times" in trial.rival else ":" if "tenth" in trial.rival else "-"
            axes.plot(
                [s for _, s, _ in trial.curve], [loss for _, _, loss in trial.curve], style,
                color=f"C{DRAWN.index(kind)}", linewidth=1.3, label=kind if style == "-" else None,
            )  # fmt: skip
        target = next((t.target for t in own if t.target is not None), None)
        if target is not None:
            axes.axhline(target, color="black", linewidth=0.8)
            axes.set_ylim(0.8 * target if target > 0 else None, 1.05 * max(t.curve[0][2] for t in own))
        axes.set_yscale("log")
        axes.set(title=program, xlabel=SECONDS)
    figure.axes[0].set_ylabel("loss on judged data")
    figure.axes[0].legend(fontsize=7)
    return figure
