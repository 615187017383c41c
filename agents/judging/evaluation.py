"""Evaluation: all runs of an evaluation and every statistic of the protocol, from the runs and the timings alone."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from loopwright.agents.judging.results import RunRecord
from loopwright.agents.judging.statistics import (
    GEQ,
    MARGIN,
    SECONDS,
    FinalMetric,
    Profile,
    Ratio,
    TaskRow,
    compare_costs,
    compare_final_metric,
    compare_tasks,
    count_break_even,
    make_profiles,
    state_verdict,
)
from loopwright.agents.judging.timing import Timing, convert_to_seconds, estimate_timing_variance
from loopwright.agents.judging.wording import say_joint, say_saving

ALL_UNSEEN = "all unseen"
ORACLE, OPEN_LOOP = "oracle", "open-loop replay"
TUNING = "tuning budget"  # the group of the searches
OPEN_LOOP_NOTE = "the agent's own schedules, replayed without feedback, do as well as the agent: feedback is not used"


@dataclass(frozen=True)
class Method:
    name: str
    group: str


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
            (group, other): compare_costs(runs, group, self.agent, other)
            for group, runs in easier.items()
            for other in self.others
        }

    @property
    def units(self) -> tuple[str, ...]:
        return (GEQ, SECONDS) if self.timings else (GEQ,)

    @cached_property
    def _by_group(self) -> dict[tuple[str, str], list[RunRecord]]:
        timed = {GEQ: list(self.records), SECONDS: convert_to_seconds(self.records, self.timings)}
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
            (group, other, unit): compare_costs(
                self.runs(group, unit),
                group,
                self.agent,
                other,
                unit=unit,
                extra=self._timing_variance(group, other) if unit == SECONDS else 0.0,
            )
            for group in self.groups
            for other in self.others
            for unit in self.units
        }

    def _timing_variance(self, group: str, against: str) -> float:
        return estimate_timing_variance(self.timings, self.agent, against, self.groups[group])

    def ratio(self, group: str, against: str, unit: str = GEQ) -> Ratio:
        """The agent's cost over another method's on a suite."""
        return self._ratios[group, against, unit]

    @property
    def ratios(self) -> list[Ratio]:
        return list(self._ratios.values())

    def verdict(self, group: str, against: str) -> str:
        """See ``statistics.state_verdict``."""
        return state_verdict([self.ratio(group, against, unit) for unit in self.units])

    @cached_property
    def task_rows(self) -> dict[str, list[TaskRow]]:
        """Per suite, the agent against the rival on each task, the easiest win first."""
        rows = {group: compare_tasks(self.runs(group), self.agent, self.rival) for group in self.suites}
        return {group: sorted(own, key=lambda row: row.ratio.point) for group, own in rows.items()}

    def worst(self, group: str) -> TaskRow:
        return self.task_rows[group][-1]

    @cached_property
    def profiles(self) -> dict[str, list[Profile]]:
        """Per group, the performance profiles of all methods but the oracle, the highest score first."""
        field = [name for name in self.names if name != ORACLE]
        found = {group: make_profiles(self.runs(group), field) for group in self.groups}
        return {group: sorted(own, key=lambda profile: -profile.score) for group, own in found.items()}

    def final_metric(self, group: str) -> FinalMetric:
        return compare_final_metric(self.runs(group), self.agent, self.rival)

    def break_even(self, group: str) -> float:
        """Runs after which training the agent has paid for itself against the rival."""
        if not self.meta_flops:
            return math.nan
        return count_break_even(self.runs(group), self.agent, self.rival, self.meta_flops, self.flops)

    @property
    def overhead(self) -> float:
        """Share of the agent's time that its controller takes, mean over tasks; NaN where nothing was timed."""
        own = [timing.overhead for timing in self.timings if timing.method == self.agent]
        return float(np.mean(own)) if own else math.nan

    def headline(self, group: str) -> str:
        """One sentence on a suite."""
        ratio = self.ratio(group, self.rival)
        sentence = (
            f"{group}: against {self.rival} the {self.agent} needs {say_saving(ratio, 'geq')}, "
            f"hits {ratio.hit_rate:.0%} against {ratio.against_hit_rate:.0%}, {say_joint(ratio)} where both hit"
        )
        if SECONDS in self.units:
            seconds = self.ratio(group, self.rival, SECONDS)
            sentence += f", and needs {say_saving(seconds, 'time')}"
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
