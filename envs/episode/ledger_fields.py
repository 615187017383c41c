"""What the lines of a ledger hold, field by field, and what each accepts: a file is not believed because it is sealed.

``read_checked_ledger`` is how a ledger is read that is to be shown, executed again or followed. The seals say that
nobody changed a line by accident; whoever can write a file can seal it, so that types, ranges and names are checked
here, and what a header asks of the machine (lanes, samples) is bounded.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from loopwright.envs.episode.decision import OUTCOMES
from loopwright.envs.loop.context import INFORMATION
from loopwright.envs.loop.errors import LedgerError
from loopwright.envs.loop.guard import VERDICTS
from loopwright.envs.loop.ledger import LedgerContent, read_ledger
from loopwright.envs.loop.observation import Needs
from loopwright.envs.loop.plan import CHOICES, OPTIMIZERS, PLAN_FIELDS, LoopPlan
from loopwright.envs.loop.telemetry import TELEMETRY
from loopwright.envs.loop.untrusted import Name, Reader, demand, one_of

# What a header may ask for: lanes, samples of a tick in all of them, ticks of a decision.
LANES_AGAIN, SAMPLES_AGAIN, TICKS_AGAIN = 4096, 2**17, 1024
LARGEST = 1e300  # of numbers in a ledger: what they are multiplied with stays finite
_WIDE = "must be a number, or as text inf, -inf or nan"


def _is_wide(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("inf", "-inf", "nan")
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _check_wide(value: Any) -> Any:
    demand(_is_wide(value), _WIDE)
    return value


def _check_columns(plan: dict[str, Any]) -> dict[str, Any]:
    demand(plan.keys() == set(PLAN_FIELDS), f"must have the fields of a plan: {', '.join(PLAN_FIELDS)}")
    for name, value in plan.items():
        if name in CHOICES:
            demand(value in CHOICES[name], f"{name} must be one of {', '.join(CHOICES[name])}")
        elif not (name == "rollback" and isinstance(value, bool)):
            demand(_is_wide(value), f"{name} {_WIDE}")
    return plan


def _check_plan(plan: dict[str, Any]) -> dict[str, Any]:
    LoopPlan.from_json(_check_columns(plan))
    return plan


def _check_names(*names: str) -> AfterValidator:
    def check(values: dict[str, Any]) -> dict[str, Any]:
        demand(values.keys() == set(names), f"must be given for {', '.join(names)}")
        return values

    return AfterValidator(check)


_Count = Annotated[int, Field(ge=0, lt=2**62)]
_Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
_Positive = Annotated[float, Field(gt=0, le=LARGEST)]
_Wide = Annotated[Any, AfterValidator(_check_wide)]  # a number that may be infinite, or none
_Measured = Annotated[dict[str, _Wide], _check_names(*TELEMETRY)]
_Observed = Annotated[dict[Name, _Number], Field(max_length=1000)] | None
_Plan = Annotated[dict[str, Any], AfterValidator(_check_plan)]
_Columns = Annotated[dict[str, Any], AfterValidator(_check_columns)]  # a plan of a loop that is not ours: any numbers
_Versions = dict[Name, Name]


class _Fields(BaseModel):
    """All of them have to be there, of just that type, and no others."""

    model_config = ConfigDict(strict=True, extra="forbid")


class AuthorFields(_Fields):
    """``envs.loop.ledger.Author``."""

    name: Name
    fingerprint: str | None
    knobs: Name | None
    action: Name | None


class SettingsFields(_Fields):
    """``EpisodeSettings.as_json``."""

    microbatch: Annotated[int, Field(ge=1, le=SAMPLES_AGAIN)]
    ticks_per_decision: Annotated[int, Field(ge=1, le=TICKS_AGAIN)]
    control_batch: Annotated[int, Field(ge=1, le=SAMPLES_AGAIN)]
    budget_factor: _Positive
    prices: Name | dict[Name, _Number]
    reward: Name
    guard: _Count
    discount: _Number
    compile: bool
    device: Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:\d{1,2})?)$")]


class RunHeader(_Fields):
    """The first line of an episode's ledger."""

    format: Name
    task: Name
    task_fingerprint: Name
    seed: _Count
    lane: _Count
    start: _Plan
    budget: _Positive
    prices: Annotated[dict[Name, Annotated[float, Field(ge=0, le=LARGEST)]], _check_names(*OPTIMIZERS)]
    withheld: list[Annotated[str, AfterValidator(one_of(*INFORMATION))]]
    open_budget: Annotated[float, Field(ge=0, le=LARGEST)] = 0.0  # there were no open runs at first
    target: _Number
    author: AuthorFields
    versions: _Versions
    settings: SettingsFields
    lanes: Annotated[int, Field(ge=1, le=LANES_AGAIN)]
    threads: Annotated[int, Field(ge=1, lt=2**31)]
    needs: Annotated[str, AfterValidator(one_of(*Needs))]
    rolls_back: bool
    engine: Name
    window: _Count

    @model_validator(mode="after")
    def _check_size(self) -> "RunHeader":
        demand(self.lane < self.lanes, f"lane {self.lane} must be one of {self.lanes} lanes")
        at_once = self.lanes * self.settings.microbatch
        demand(at_once <= SAMPLES_AGAIN, f"{at_once} samples at once are more than {SAMPLES_AGAIN}")
        return self


class RunDecision(_Fields):
    """Any other line of it."""

    decision: _Count
    observation: _Observed
    action: Annotated[list[_Number], Field(max_length=100)] | None
    plan_before: _Plan
    plan: _Plan
    telemetry: _Measured
    reward: _Wide
    cost: Annotated[float, Field(ge=0, le=LARGEST)]
    loss: _Wide
    metric: _Wide
    outcome: Annotated[str, AfterValidator(one_of(*OUTCOMES))]
    verdict: Annotated[str, AfterValidator(one_of(*VERDICTS))]


class SteeredHeader(_Fields):
    """The first line of the ledger of a loop that a policy was attached to."""

    format: Name
    task: None
    steered: Name
    start: _Columns
    steps: _Count | None
    author: AuthorFields
    window: _Count
    every: _Count
    advise: bool
    versions: _Versions


class SteeredDecision(_Fields):
    """Any other line of it."""

    decision: _Count
    updates: _Count
    observation: _Observed
    plan_before: _Columns
    plan: _Columns
    telemetry: _Measured | None
    verdict: Annotated[str, AfterValidator(one_of(*VERDICTS))]


def is_steered(content: LedgerContent) -> bool:
    """Whether the ledger is of a loop that was attached to."""
    return "steered" in content.header


def read_checked_ledger(path: Path) -> LedgerContent:
    """Read a ledger as ``read_ledger`` does, and check every field of it.

    Raises ``LedgerError``, also for a field that is missing, too many, of another type or out of its range: the message
    names file, line and field.
    """
    content = read_ledger(path)
    header, decision = (SteeredHeader, SteeredDecision) if is_steered(content) else (RunHeader, RunDecision)
    Reader[_Fields](header, LedgerError).check(content.header, f"{path}, line 1")
    lines = Reader[_Fields](decision, LedgerError)
    for number, entry in enumerate(content.entries, start=2):
        lines.check(entry, f"{path}, line {number}")
    return content
