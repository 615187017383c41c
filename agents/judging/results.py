"""Results of an evaluation: one record per run, kept as JSON lines that are only ever appended to.

The first line, the header, says what was evaluated. A process that is killed loses at most the line it was writing;
reading cuts a half-written line off, and an evaluation that goes on skips the runs that are there.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from loopwright.envs.episode.decision import HIT, MISS, OUTCOMES
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.plan import LoopPlan
from loopwright.envs.loop.storage import append_line, cut_file, write_whole

RESULTS_FORMAT = "loopwright-results-1"


class Key(NamedTuple):
    """What makes a run the one it is. ``training`` tells independent trainings of one agent apart."""

    method: str
    training: int
    task: str
    seed: int


class TracePoint(NamedTuple):
    """Where a run stood after one decision: geq spent, loss on the target split, and the plan it trained under."""

    cost: float
    loss: float
    plan: LoopPlan


@dataclass(frozen=True)
class RunRecord:
    """One run of one method: what it cost to hit the target, or the whole budget for a miss.

    Attributes:
        method, training, task, seed: see ``Key``.
        outcome: "hit", "miss" or "diverged".
        cost: geq until the first of two evaluations in a row at or below the target; the budget for a miss.
        budget: geq it might spend.
        final_loss, final_metric: on the target split, when it ended.
        easier_cost: as ``cost``, for the task's second, easier target; None for a task that has none.
        trace: a point per decision; empty unless asked for.
    """

    method: str
    task: str
    seed: int
    outcome: str
    cost: float
    budget: float
    final_loss: float
    final_metric: float
    training: int = 0
    easier_cost: float | None = None
    trace: tuple[TracePoint, ...] = ()

    @property
    def key(self) -> Key:
        return Key(self.method, self.training, self.task, self.seed)

    @property
    def hit(self) -> bool:
        return self.outcome == OUTCOMES[HIT]

    def to_easier(self) -> "RunRecord":
        """The record as if the easier target had been the task's. Raises ``LoopwrightError`` where there is none."""
        if self.easier_cost is None:
            raise LoopwrightError(f"task {self.task} has no easier target")
        reached = self.easier_cost < self.budget
        return replace(self, cost=self.easier_cost, outcome=OUTCOMES[HIT if reached else MISS])

    def as_json(self) -> dict[str, Any]:
        """JSON values; the trace by columns, and of the plans only the fields that change."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "trace"}
        return values | ({"trace": _columns(self.trace)} if self.trace else {})

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RunRecord":
        columns = values.get("trace")
        return cls(**{**values, "trace": _points(columns) if columns else ()})


def _columns(trace: Sequence[TracePoint]) -> dict[str, Any]:
    plans = [point.plan.as_json() for point in trace]
    changed = [field for field in plans[0] if any(plan[field] != plans[0][field] for plan in plans)]
    return {
        "cost": [round(point.cost, 3) for point in trace],
        "loss": [float(f"{point.loss:.6g}") for point in trace],
        "first": plans[0],
        "changed": {field: [plan[field] for plan in plans] for field in changed},
    }


def _points(columns: dict[str, Any]) -> tuple[TracePoint, ...]:
    changed = columns["changed"]
    return tuple(
        TracePoint(cost, loss, LoopPlan.from_json(columns["first"] | {field: changed[field][i] for field in changed}))
        for i, (cost, loss) in enumerate(zip(columns["cost"], columns["loss"], strict=True))
    )


class ResultsFile:
    """The records of one evaluation on disk.

    Opening creates the file, or reads it and cuts off a line that was not finished. Methods, and trainings of a method,
    may be added later: a header that names them then follows the records that were there.

    Args:
        path: the file.
        header: what was evaluated on: JSON values, the same whenever the file is opened.
        methods: fingerprints by the name of a method, one for each training.

    Raises:
        LoopwrightError: the file belongs to another evaluation (its header, or a method's fingerprints, differ), is
            damaged before its end, or counts a run twice.
    """

    def __init__(self, path: Path, header: dict[str, Any], methods: dict[str, list[str]]) -> None:
        self.path = path
        header = json.loads(json.dumps({"format": RESULTS_FORMAT, **header}))
        known: dict[str, list[str]] = {}
        self.records: list[RunRecord] = []
        if path.exists() and path.stat().st_size:
            found, self.records = read_results(path)
            known = found.pop("methods")
            differs = sorted(name for name in {*found, *header} if found.get(name) != header.get(name))
            differs += [name for name, prints in methods.items() if not _one_continues(prints, known.get(name, []))]
            if differs:
                raise LoopwrightError(
                    f"{path} holds the results of another evaluation ({', '.join(differs)} differ); "
                    f"choose another folder"
                )
            cut_unfinished_line(path)
        self.done = {record.key for record in self.records}
        both = {name: max(known.get(name, []), methods.get(name, []), key=len) for name in {**known, **methods}}
        line = json.dumps({**header, "methods": both}).encode() + b"\n"
        if not path.exists() or not path.stat().st_size:
            write_whole(path, line)
        elif both != known:
            append_line(path, line)

    def append(self, record: RunRecord) -> None:
        """Keep a record. Raises ``LoopwrightError`` for a run that is there already."""
        if record.key in self.done:
            raise LoopwrightError(f"{self.path} already holds the run {record.key}")
        append_line(self.path, json.dumps(record.as_json()).encode() + b"\n")
        self.done.add(record.key)
        self.records.append(record)


def _one_continues(first: list[str], second: list[str]) -> bool:
    """Whether one of two lists begins with all of the other."""
    return all(a == b for a, b in zip(first, second, strict=False))


def cut_unfinished_line(path: Path) -> None:
    """Take off what follows the last newline of a file: a process was killed while it wrote it."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        cut_file(path, end)


def read_results(path: Path) -> tuple[dict[str, Any], list[RunRecord]]:
    """Header and records, without a last line that was not finished. Raises ``LoopwrightError`` for any other file."""
    try:
        lines = path.read_text().split("\n")[:-1]  # what follows the last newline was not finished
    except FileNotFoundError:
        raise LoopwrightError(f"no results at {path}") from None
    records: list[RunRecord] = []
    header: dict[str, Any] = {}
    number = 1
    try:
        for number, line in enumerate(lines or [""], start=1):
            values = json.loads(line)
            if "format" in values or number == 1:
                header = values
                if header["format"] != RESULTS_FORMAT:
                    raise LoopwrightError(
                        f"{path} has format {header['format']!r}; this version reads {RESULTS_FORMAT!r}"
                    )
            else:
                records.append(RunRecord.from_json(values))
    except (KeyError, TypeError, json.JSONDecodeError) as problem:
        raise LoopwrightError(f"{path} is not a results file: line {number}: {problem!r}") from None
    check_unique(records, str(path))
    return header, records


def check_unique(records: Iterable[RunRecord], where: str) -> None:
    """Raises ``LoopwrightError`` where a run is counted twice."""
    seen: set[Key] = set()
    for record in records:
        if record.key in seen:
            raise LoopwrightError(f"{where}: the run {record.key} is counted twice")
        seen.add(record.key)
