"""Tables of an evaluation: shown in the terminal, in Markdown and in the report."""

import math
from dataclasses import dataclass

from loopwright.agents.judging.evaluation import TUNING, Evaluation
from loopwright.agents.judging.statistics import MARGIN, R_MAX, average_share, measure_hit_rate
from loopwright.agents.judging.wording import say_interval, say_joint

OUTCOME_WORDS = {"win": "won", "tie": "tied", "loss": "lost", "not testable": "not testable"}


@dataclass(frozen=True)
class Table:
    """A table of strings; ``bold`` rows stand out."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    bold: tuple[int, ...] = ()


def make_tables(evaluation: Evaluation) -> list[Table]:
    """All tables: per group of tasks the methods, then per suite the tasks, then the rest."""
    return [
        *(make_method_table(evaluation, group) for group in evaluation.groups),
        *(make_task_table(evaluation, group) for group in evaluation.suites),
        make_summary_table(evaluation),
    ]


def make_method_table(evaluation: Evaluation, group: str) -> Table:
    """Every method on a suite: hits, cost, the agent's cost over its cost in both units, score, verdict."""
    scores = {profile.method: profile.score for profile in evaluation.profiles[group]}
    rows, bold = [], []
    for number, method in enumerate(evaluation.methods):
        runs = [r for r in evaluation.runs(group) if r.method == method.name]
        cells = [method.name, method.group, f"{measure_hit_rate(runs, method.name):.0%}", f"{average_share(runs):.2f}"]
        if method.name == evaluation.agent:
            cells += ["1"] * (1 + len(evaluation.units) + bool(evaluation.easier_ratios)) + [""]
        else:
            cells += [say_interval(evaluation.ratio(group, method.name, unit)) for unit in evaluation.units]
            cells.append(say_joint(evaluation.ratio(group, method.name)))
            cells += [say_interval(evaluation.easier_ratios[group, method.name])] if evaluation.easier_ratios else []
            cells.append(evaluation.verdict(group, method.name))
        cells.append(f"{scores[method.name]:.2f}" if method.name in scores else "")
        if method.name in (evaluation.agent, evaluation.rival):
            bold.append(number)
        rows.append(tuple(cells))
    columns = tuple(f"{evaluation.agent} / method, {unit}" for unit in evaluation.units)
    columns += ("where both hit, geq",)
    if evaluation.easier_ratios:
        columns += (f"{evaluation.agent} / method, easier target, geq",)
    header = ("method", "group", "hits", "cost", *columns, f"the {evaluation.agent}", "score")
    searched = ", of a search all its trials' budgets" if TUNING in {m.group for m in evaluation.methods} else ""
    note = (
        f"cost: share of the budget{searched}, geometric mean, a miss counts as all of it. Ratios below 1: the "
        f"{evaluation.agent} needs less; 95 % intervals over trainings, tasks and seeds. Where both hit: the ratio "
        f"over those runs alone, and how many they are. Score: area under the performance profile up to {R_MAX:g} "
        f"times the best. In bold: the {evaluation.agent}, and the best competitor by the training suite."
    )
    return Table(f"{group} ({len(evaluation.groups[group])} tasks)", header, tuple(rows), note, tuple(bold))


def make_task_table(evaluation: Evaluation, group: str) -> Table:
    """The agent against the rival, task by task."""
    rows = tuple(
        (
            row.task,
            say_interval(row.ratio),
            f"{row.ratio.hit_rate:.0%}",
            f"{row.ratio.against_hit_rate:.0%}",
            f"{row.p:.3f}",
            f"{row.holm:.3f}",
            row.outcome,
        )
        for row in evaluation.task_rows[group]
    )
    counts = {outcome: sum(row.outcome == outcome for row in evaluation.task_rows[group]) for outcome in OUTCOME_WORDS}
    tally = ", ".join(f"{counts[outcome]} {said}" for outcome, said in OUTCOME_WORDS.items())
    return Table(
        f"{group}, task by task: {evaluation.agent} / {evaluation.rival}",
        ("task", "cost ratio", f"hits: {evaluation.agent}", f"hits: {evaluation.rival}", "p", "p, Holm", "outcome"),
        rows,
        f"{tally}. p: paired Wilcoxon test over seeds, then corrected for the number of tasks (Holm); with too few "
        "seeds for any p to survive that, nothing is tested.",
    )


def make_summary_table(evaluation: Evaluation) -> Table:
    """Worst task, final metric, overhead, and when the training has paid for itevaluation."""
    rows = []
    for group in evaluation.groups:
        metric, runs = evaluation.final_metric(group), evaluation.break_even(group)
        cells = [
            group,
            say_interval(evaluation.ratio(group, evaluation.rival)),
            evaluation.verdict(group, evaluation.rival),
        ]
        worst = evaluation.worst(group) if group in evaluation.suites else max(
            (evaluation.worst(suite) for suite in evaluation.suites), key=lambda row: row.ratio.point
        )  # fmt: skip
        cells.append(f"{worst.task}: {worst.ratio.point:.2f}")
        cells.append(str(metric))
        cells.append("no worse" if metric.no_worse else "not shown")
        cells.append("unknown" if math.isnan(runs) else f"{runs:.0f} runs" if math.isfinite(runs) else "never")
        rows.append(tuple(cells))
    overhead = (
        "not timed"
        if math.isnan(evaluation.overhead)
        else f"{evaluation.overhead:.0%} of the {evaluation.agent}'s time"
    )
    return Table(
        f"{evaluation.agent} against {evaluation.rival}",
        ("tasks", "cost ratio", "verdict", "worst task", "final metric", f"by {MARGIN:g}", "pays after"),
        tuple(rows),
        f"Controller's own work: {overhead}. Final metric: accuracy or R2 when the run ends, difference; a run "
        f"ends at the target or with its budget.",
    )
