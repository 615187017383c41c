"""The one way to read JSON that somebody else may have written, or that was damaged on the way.

A file is read up to a limit, parsed without surprises (a name twice, NaN, nesting without end, numbers of thousands of
digits) and checked by pydantic against a type: the names, types and ranges of all that it holds, and nothing besides.
What does not fit is one line that names the file, where it has lines the line, the entry and what is accepted.
"""

import json
import math
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Generic, NoReturn, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    create_model,
    with_config,
)

from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.plan import LoopPlan

JSON_LIMIT, LINE_LIMIT = 1 << 20, 4 << 20  # bytes of a file, and of a line, of JSON
SHOWN, SAID = 60, 300  # characters of a value in a message, and of what is said about a file
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
strict = with_config(_STRICT)  # for classes that are read: nothing is converted, and there is nothing besides

T = TypeVar("T")


def _require_printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be printable")
    return value


def _restore_number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and value in ("inf", "-inf", "nan") else value


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_require_printable)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
AnyFloat = Annotated[float, Field(allow_inf_nan=True), BeforeValidator(_restore_number)]  # "inf", "nan": as in ledgers
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@lru_cache(maxsize=1)
def _make_plan_model() -> type[BaseModel]:
    """A plan as ``LoopPlan.as_json`` writes it: every field, of its type. Its ranges are the plan's own business."""
    entries: dict[str, Any] = {
        field.name: (AnyFloat if field.name == "clip" else field.type, ...) for field in fields(LoopPlan)
    }
    return create_model("_Plan", __config__=_STRICT, **entries)


def restore_plan(values: Any) -> LoopPlan:
    """The plan that parsed JSON describes, for validators. Raises ``ValueError`` where it does not describe one."""
    return LoopPlan(**dict(_make_plan_model().model_validate(values)))


def _check_plan(values: dict[str, Any]) -> dict[str, Any]:
    restore_plan(values)
    return values


PlanEntry = Annotated[LoopPlan, PlainValidator(restore_plan)]
PlanValues = Annotated[dict[str, Any], AfterValidator(_check_plan)]  # the JSON of one that is sound, as it stands there


def read_limited(
    path: Path, limit: int, error: type[LoopwrightError] = LoopwrightError, *, whole: bool = True
) -> bytes:
    """The content of a file of at most ``limit`` bytes, or, not ``whole``, so many of any file.

    Raises ``error`` as ``opening`` does.
    """
    with opening(path, limit if whole else math.inf, error) as file:
        return file.read(limit)


@contextmanager
def opening(path: Path, limit: float, error: type[LoopwrightError] = LoopwrightError) -> Iterator[BinaryIO]:
    """A file of at most ``limit`` bytes, open for reading. Raises ``error`` for a larger one, or what is no file."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, a device never end
            raise error(f"cannot read {path}: it is no file")
        if found.st_size > limit:
            raise error(f"cannot read {path}: it is larger than the {limit / 2**20:g} MB that such a file may have")
        with path.open("rb") as file:
            yield file
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror or problem}") from None
    except ValueError as problem:
        if isinstance(problem, LoopwrightError):
            raise
        raise error(f"cannot read {path}: {problem}") from None


class Reader(Generic[T]):
    """Reads JSON of one kind.

    Args:
        kind: the type that is read, as pydantic understands it: a class or an annotation.
        error: what is raised for anything else.
        limit: bytes that may be read.
    """

    def __init__(self, kind: Any, error: type[LoopwrightError] = LoopwrightError, limit: int = JSON_LIMIT) -> None:
        self.kind, self.error, self.limit = kind, error, limit

    @cached_property
    def _adapter(self) -> TypeAdapter[T]:
        return TypeAdapter(self.kind)

    def read(self, path: Path) -> T:
        """What a file holds. Raises ``error`` naming it."""
        return self.parse(read_limited(path, self.limit, self.error), str(path))

    def parse(self, text: bytes, where: str) -> T:
        """What a text holds; ``where`` says in a message where it is from. Raises ``error``."""
        if len(text) > self.limit:
            raise self.error(f"{where}: {len(text)} bytes are more than the {self.limit} that are read")
        try:
            # Twice: pydantic's own parser is strict in types, but takes the second of two entries of one name.
            json.loads(text.decode(), object_pairs_hook=_refuse_twins, parse_constant=_refuse_constant)
            return self._adapter.validate_json(text, strict=True)
        except RecursionError:
            problem = "it is nested too deeply"
        except ValidationError as found:
            problem = _describe(found)
        except ValueError as found:
            problem = f"not JSON: {found}"
        raise self.error(f"{where}: {_shorten(problem)}")

    def check(self, values: Any, where: str) -> T:
        """As ``parse``, for a part of what was parsed; for kinds without tuples and dataclasses, which JSON lacks."""
        try:
            return self._adapter.validate_python(values, strict=True)
        except ValidationError as found:
            raise self.error(f"{where}: {_shorten(_describe(found))}") from None


def demand(holds: bool, problem: str) -> None:
    """Raise ``ValueError`` where something does not hold: what validators say their word with."""
    if not holds:
        raise ValueError(problem)


def one_of(*choices: str) -> Callable[[str], str]:
    """A validator: the value is one of ``choices``."""

    def check(value: str) -> str:
        demand(value in choices, f"must be one of {', '.join(choices)}")
        return value

    return check


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twin = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{_show(twin)} stands there twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _describe(problem: ValidationError) -> str:
    """The first of the problems on one line: the entry, what is accepted, and what came."""
    first = problem.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) if isinstance(part, int) else _show(part).strip("'\"") for part in first["loc"])
    what = first["msg"].removeprefix("Value error, ")
    came = first["input"]
    if first["type"] not in ("missing", "json_invalid") and isinstance(came, str | int | float | None):
        what += f", got {_show(came)}"
    return f"{where}: {what}" if where else what


def _show(value: str | float | None) -> str:
    """A value on one line, short, without what a terminal would obey."""
    shown = ascii(value)
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."


def _shorten(problem: str) -> str:
    """What validators of others say may quote all of a value."""
    printable = problem if problem.isprintable() else ascii(problem)[1:-1]
    return printable if len(printable) <= SAID else f"{printable[:SAID]}..."
