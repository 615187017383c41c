"""Results of an evaluation: one record per run, kept on disk as ``records`` says.

The header says what was evaluated; every run belongs to a method, a task and a seed that it names.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired

from pydantic import AfterValidator, FailFast, Field, PlainValidator, TypeAdapter
from typing_extensions import TypedDict

from loopwright.agents.judging.records import Header, RecordKind, RecordsFile, read_records
from loopwright.envs.episode.decision import HIT, MISS, OUTCOMES, RUNNING
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.plan import LoopPlan
from loopwright.envs.loop.untrusted import AnyFloat, Count, Name, Positive, demand, one_of, restore_plan, strict

ENDINGS = OUTCOMES[RUNNING + 1 :]
Fingerprints = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1), FailFast()]


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


@strict
class _Columns(TypedDict):
    """A trace by columns: of the plans the first one, and of the fields that change those of all."""

    cost: Annotated[list[Annotated[float, Field(ge=0)]], FailFast()]
    loss: Annotated[list[AnyFloat], FailFast()]
    first: dict[str, Any]
    changed: dict[str, list[Any]]


_COLUMNS = TypeAdapter[_Columns](_Columns)


def _restore_trace(values: Any) -> tuple[TracePoint, ...]:
    columns = _COLUMNS.validate_python(values)
    cost, loss, changed = columns["cost"], columns["loss"], columns["changed"]
    lengths = sorted({len(column) for column in (cost, loss, *changed.values())})
    demand(len(lengths) == 1, f"columns of the lengths {', '.join(map(str, lengths))}")
    plans = [columns["first"] | {name: column[i] for name, column in changed.items()} for i in range(len(cost))]
    return tuple(TracePoint(*point) for point in zip(cost, loss, map(restore_plan, plans), strict=True))


@strict
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

    method: Name
    task: Name
    seed: Count
    outcome: Annotated[str, AfterValidator(one_of(*ENDINGS))]
    cost: Positive
    budget: Positive
    final_loss: AnyFloat
    final_metric: AnyFloat
    training: Count = 0
    easier_cost: Positive | None = None
    trace: Annotated[tuple[TracePoint, ...], PlainValidator(_restore_trace)] = ()

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


def _columns(trace: Sequence[TracePoint]) -> dict[str, Any]:
    plans = [point.plan.as_json() for point in trace]
    changed = [field for field in plans[0] if any(plan[field] != plans[0][field] for plan in plans)]
    return {
        "cost": [round(point.cost, 3) for point in trace],
        "loss": [float(f"{point.loss:.6g}") for point in trace],
        "first": plans[0],
        "changed": {field: [plan[field] for plan in plans] for field in changed},
    }


@strict
class ResultsHeader(TypedDict):
    """What was evaluated on; ``methods`` are fingerprints by the name of a method, one for each training."""

    format: str
    suites: dict[Name, Annotated[list[Name], FailFast()]]
    seeds: Annotated[list[Count], FailFast()]
    settings: NotRequired[dict[str, Any]]
    rate_spread: NotRequired[float]
    methods: dict[Name, Fingerprints]


def _check(header: Header, record: RunRecord) -> None:
    trainings, tasks = header["methods"].get(record.method, ()), chain.from_iterable(header["suites"].values())
    demand(record.training < len(trainings), f"the header names no training {record.training} of {record.method!r}")
    demand(record.task in tasks, f"the header names no task {record.task!r}")
    demand(record.seed in header["seeds"], f"the header names no seed {record.seed}")
    demand(record.cost <= record.budget, f"cost {record.cost} is above the budget {record.budget}")
    demand(record.hit or record.cost == record.budget, f"a {record.outcome} costs the budget, not {record.cost}")
    demand((record.easier_cost or 0.0) <= record.budget, f"easier_cost {record.easier_cost} is above the budget")


RESULTS_KIND = RecordKind[RunRecord](
    "results", "loopwright-results-2", ResultsHeader, RunRecord, _check, "evaluate again"
)


class ResultsFile(RecordsFile[RunRecord]):
    """The runs of one evaluation on disk: see ``RecordsFile``.

    Args:
        path: the file.
        header: what was evaluated on: JSON values, the same whenever the file is opened; suites and seeds among them.
        methods: fingerprints by the name of a method, one for each training.
    """

    def __init__(self, path: Path, header: Header, methods: dict[str, list[str]]) -> None:
        super().__init__(path, RESULTS_KIND, {**header, "methods": methods})


def read_results(path: Path) -> tuple[Header, list[RunRecord]]:
    """Header and records, without a last line that was not finished. Raises ``LoopwrightError`` for any other file."""
    return read_records(path, RESULTS_KIND)
