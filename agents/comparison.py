"""What an evaluation says: every statistic of the protocol, from the runs and the timings alone, and tables of them."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from loopwright.agents.results import RunRecord
from loopwright.agents.statistics import (
    GEQ,
    MARGIN,
    R_MAX,
    SECONDS,
    FinalMetric,
    Profile,
    Ratio,
    TaskRow,
    break_even,
    cost_ratio,
    final_metric,
    geometric_share,
    hit_rate,
    per_task,
    profiles,
    stated,
)
from loopwright.agents.timing import Timing, in_seconds, timing_variance

ALL_UNSEEN = "all unseen"
ORACLE, OPEN_LOOP = "oracle", "open-loop replay"
TUNING = "tuning budget"  # the group of the searches
OPEN_LOOP_NOTE = "the agent's own schedules, replayed without feedback, do as well as the agent: feedback is not used"
OUTCOMES = {"win": "won", "tie": "tied", "loss": "lost", "not testable": "not testable"}


@dataclass(frozen=True)
class Method:
    name: str
    group: str


@dataclass(frozen=True)
class Table:
    """A table of strings: shown in the terminal, in Markdown and in the report. ``bold`` rows stand out."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    bold: tuple[int, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """All runs of an evaluation, and what follows from them.

    Attributes:
        agent: name of the method that is judged.
        rival: the best single competitor, chosen where all were tuned.
        methods: all methods with their groups, in the order of tables.
        suites: the tasks of each suite.
        records: every run.
        timings: seconds per geq of every method and task; may be empty.
        meta_flops: spent on training the agent; 0 where unknown.
        flops: what a geq stands for on each task, where ``meta_flops`` are known.
    """

    agent: str
    rival: str
    methods: tuple[Method, ...]
    suites: dict[str, tuple[str, ...]]
    records: tuple[RunRecord, ...]
    timings: tuple[Timing, ...] = ()
    meta_flops: float = 0.0
    flops: dict[str, float] = field(default_factory=dict)

    @cached_property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The suites, and all of them together where there are several."""
        together = tuple(dict.fromkeys(task for tasks in self.suites.values() for task in tasks))
        return self.suites if len(self.suites) == 1 else {**self.suites, ALL_UNSEEN: together}

    @property
    def names(self) -> list[str]:
        return [method.name for method in self.methods]

    @property
    def others(self) -> list[str]:
        return [name for name in self.names if name != self.agent]

    @cached_property
    def easier_ratios(self) -> dict[tuple[str, str], Ratio]:
        """As ``ratio``, in geq, with the easier targets, by group and other method; empty where a task has none."""
        if any(r.easier_cost is None for r in self.records):
            return {}
        easier = {group: [r.to_easier() for r in self.runs(group)] for group in self.groups}
        return {
            (group, other): cost_ratio(runs, group, self.agent, other)
            for group, runs in easier.items()
            for other in self.others
        }

    @property
    def units(self) -> tuple[str, ...]:
        return (GEQ, SECONDS) if self.timings else (GEQ,)

    @cached_property
    def _by_group(self) -> dict[tuple[str, str], list[RunRecord]]:
        timed = {GEQ: list(self.records), SECONDS: in_seconds(self.records, self.timings)}
        members = {group: set(tasks) for group, tasks in self.groups.items()}
        return {
            (group, unit): [r for r in timed[unit] if r.task in tasks]
            for group, tasks in members.items()
            for unit in self.units
        }

    def runs(self, group: str, unit: str = GEQ) -> list[RunRecord]:
        """The runs on a suite's tasks, or on all; costs in ``unit``."""
        return self._by_group[group, unit]

    @cached_property
    def _ratios(self) -> dict[tuple[str, str, str], Ratio]:
        return {
            (group, other, unit): cost_ratio(
                self.runs(group, unit),
                group,
                self.agent,
                other,
                unit=unit,
                extra=timing_variance(self.timings, self.agent, other, self.groups[group]) if unit == SECONDS else 0.0,
            )
            for group in self.groups
            for other in self.others
            for unit in self.units
        }

    def ratio(self, group: str, against: str, unit: str = GEQ) -> Ratio:
        """The agent's cost over another method's on a suite."""
        return self._ratios[group, against, unit]

    @property
    def ratios(self) -> list[Ratio]:
        return list(self._ratios.values())

    def verdict(self, group: str, against: str) -> str:
        """See ``statistics.stated``."""
        return stated([self.ratio(group, against, unit) for unit in self.units])

    @cached_property
    def task_rows(self) -> dict[str, list[TaskRow]]:
        """Per suite, the agent against the rival on each task, the easiest win first."""
        rows = {group: per_task(self.runs(group), self.agent, self.rival) for group in self.suites}
        return {group: sorted(own, key=lambda row: row.ratio.point) for group, own in rows.items()}

    def worst(self, group: str) -> TaskRow:
        return self.task_rows[group][-1]

    @cached_property
    def profiles(self) -> dict[str, list[Profile]]:
        """Per group, the performance profiles of all methods but the oracle, the highest score first."""
        field = [name for name in self.names if name != ORACLE]
        found = {group: profiles(self.runs(group), field) for group in self.groups}
        return {group: sorted(own, key=lambda profile: -profile.score) for group, own in found.items()}

    def final_metric(self, group: str) -> FinalMetric:
        return final_metric(self.runs(group), self.agent, self.rival)

    def break_even(self, group: str) -> float:
        """Runs after which training the agent has paid for itself against the rival."""
        if not self.meta_flops:
            return math.nan
        return break_even(self.runs(group), self.agent, self.rival, self.meta_flops, self.flops)

    @property
    def overhead(self) -> float:
        """Share of the agent's time that its controller takes, mean over tasks; NaN where nothing was timed."""
        own = [timing.overhead for timing in self.timings if timing.method == self.agent]
        return float(np.mean(own)) if own else math.nan

    def headline(self, group: str) -> str:
        """One sentence on a suite."""
        ratio = self.ratio(group, self.rival)
        sentence = (
            f"{group}: against {self.rival} the {self.agent} needs {saving(ratio, 'geq')}, "
            f"hits {ratio.hit_rate:.0%} against {ratio.against_hit_rate:.0%}, {joint(ratio)} where both hit"
        )
        if SECONDS in self.units:
            seconds = self.ratio(group, self.rival, SECONDS)
            sentence += f", and needs {saving(seconds, 'time')}"
        return f"{sentence}: {self.verdict(group, self.rival)}"

    @property
    def notes(self) -> list[str]:
        """What must be said along with the figures."""
        found = []
        if OPEN_LOOP in self.names:
            without = [group for group in self.groups if self.ratio(group, OPEN_LOOP).high >= 1]
            found += [f"{group}: {OPEN_LOOP_NOTE}" for group in without]
        for group in self.groups:
            metric = self.final_metric(group)
            if not metric.no_worse:
                found.append(
                    f"{group}: the final metric may be lower than {self.rival}'s by more than {MARGIN} ({metric})"
                )
        return found

    # Tables -----------------------------------------------------------------------------------------------------------

    def tables(self) -> list[Table]:
        """All tables: per group of tasks the methods, then per suite the tasks, then the rest."""
        return [
            *(self.method_table(group) for group in self.groups),
            *(self.task_table(group) for group in self.suites),
            self.summary_table(),
        ]

    def method_table(self, group: str) -> Table:
        """Every method on a suite: hits, cost, the agent's cost over its cost in both units, score, verdict."""
        scores = {profile.method: profile.score for profile in self.profiles[group]}
        rows, bold = [], []
        for number, method in enumerate(self.methods):
            runs = [r for r in self.runs(group) if r.method == method.name]
            cells = [method.name, method.group, f"{hit_rate(runs, method.name):.0%}", f"{geometric_share(runs):.2f}"]
            if method.name == self.agent:
                cells += ["1"] * (1 + len(self.units) + bool(self.easier_ratios)) + [""]
            else:
                cells += [interval(self.ratio(group, method.name, unit)) for unit in self.units]
                cells.append(joint(self.ratio(group, method.name)))
                cells += [interval(self.easier_ratios[group, method.name])] if self.easier_ratios else []
                cells.append(self.verdict(group, method.name))
            cells.append(f"{scores[method.name]:.2f}" if method.name in scores else "")
            if method.name in (self.agent, self.rival):
                bold.append(number)
            rows.append(tuple(cells))
        columns = tuple(f"{self.agent} / method, {unit}" for unit in self.units)
        columns += ("where both hit, geq",)
        if self.easier_ratios:
            columns += (f"{self.agent} / method, easier target, geq",)
        header = ("method", "group", "hits", "cost", *columns, f"the {self.agent}", "score")
        searched = ", of a search all its trials' budgets" if TUNING in {m.group for m in self.methods} else ""
        note = (
            f"cost: share of the budget{searched}, geometric mean, a miss counts as all of it. Ratios below 1: the "
            f"{self.agent} needs less; 95 % intervals over trainings, tasks and seeds. Where both hit: the ratio over "
            f"those runs alone, and how many they are. Score: area under the performance profile up to {R_MAX:g} times "
            f"the best. In bold: the {self.agent}, and the best competitor by the training suite."
        )
        return Table(f"{group} ({len(self.groups[group])} tasks)", header, tuple(rows), note, tuple(bold))

    def task_table(self, group: str) -> Table:
        """The agent against the rival, task by task."""
        rows = tuple(
            (
                row.task,
                interval(row.ratio),
                f"{row.ratio.hit_rate:.0%}",
                f"{row.ratio.against_hit_rate:.0%}",
                f"{row.p:.3f}",
                f"{row.holm:.3f}",
                row.outcome,
            )
            for row in self.task_rows[group]
        )
        counts = {outcome: sum(row.outcome == outcome for row in self.task_rows[group]) for outcome in OUTCOMES}
        tally = ", ".join(f"{counts[outcome]} {said}" for outcome, said in OUTCOMES.items())
        return Table(
            f"{group}, task by task: {self.agent} / {self.rival}",
            ("task", "cost ratio", f"hits: {self.agent}", f"hits: {self.rival}", "p", "p, Holm", "outcome"),
            rows,
            f"{tally}. p: paired Wilcoxon test over seeds, then corrected for the number of tasks (Holm); with too few "
            "seeds for any p to survive that, nothing is tested.",
        )

    def summary_table(self) -> Table:
        """Worst task, final metric, overhead, and when the training has paid for itself."""
        rows = []
        for group in self.groups:
            metric, runs = self.final_metric(group), self.break_even(group)
            cells = [group, interval(self.ratio(group, self.rival)), self.verdict(group, self.rival)]
            worst = self.worst(group) if group in self.suites else max(
                (self.worst(suite) for suite in self.suites), key=lambda row: row.ratio.point
            )  # fmt: skip
            cells.append(f"{worst.task}: {worst.ratio.point:.2f}")
            cells.append(str(metric))
            cells.append("no worse" if metric.no_worse else "not shown")
            cells.append("unknown" if math.isnan(runs) else f"{runs:.0f} runs" if math.isfinite(runs) else "never")
            rows.append(tuple(cells))
        overhead = "not timed" if math.isnan(self.overhead) else f"{self.overhead:.0%} of the {self.agent}'s time"
        return Table(
            f"{self.agent} against {self.rival}",
            ("tasks", "cost ratio", "verdict", "worst task", "final metric", f"by {MARGIN:g}", "pays after"),
            tuple(rows),
            f"Controller's own work: {overhead}. Final metric: accuracy or R2 when the run ends, difference; a run "
            f"ends at the target or with its budget.",
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything but the runs, as JSON values."""
        return {
            "agent": self.agent,
            "rival": self.rival,
            "methods": {method.name: method.group for method in self.methods},
            "suites": {name: list(tasks) for name, tasks in self.suites.items()},
            "headlines": [self.headline(group) for group in self.groups],
            "notes": self.notes,
            "ratios": [ratio.as_dict() for ratio in self.ratios],
            "scores": {group: {p.method: p.score for p in own} for group, own in self.profiles.items()},
            "tasks": {
                group: [
                    {"task": r.task, "ratio": r.ratio.point, "p": r.p, "holm": r.holm, "outcome": r.outcome}
                    for r in own
                ]
                for group, own in self.task_rows.items()
            },
            "overhead": None if math.isnan(self.overhead) else self.overhead,
            "meta_flops": self.meta_flops,
        }


def saving(ratio: Ratio, unit: str) -> str:
    """Less of a unit, as 1 - T / T_base: "30% less geq (0.70 [0.60, 0.80])"."""
    return f"{abs(ratio.saving):.0%} {'less' if ratio.point <= 1 else 'more'} {unit} ({interval(ratio)})"


def interval(ratio: Ratio) -> str:
    return f"{ratio.point:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def joint(ratio: Ratio) -> str:
    """The ratio over jointly hit runs: "0.95 (36 runs)"."""
    return f"{ratio.joint:.2f} ({ratio.joint_runs} runs)" if ratio.joint_runs else "- (0 runs)"
