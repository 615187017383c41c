"""JSON of others: what is accepted is of its type, and all else is one line that says where and why."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from loopwright.envs.loop.errors import BundleError, LoopwrightError
from loopwright.envs.loop.plan import LoopPlan
from loopwright.envs.loop.untrusted import (
    AnyFloat,
    Count,
    Digest,
    Name,
    PlanEntry,
    Positive,
    Reader,
    read_limited,
)

REFUSED: list[tuple[Any, bytes, str]] = [
    (dict[str, Any], b'{"a": 1, "a": 2}', "f: not JSON: 'a' stands there twice"),
    (dict[str, Any], b'{"a": ' + b"[" * 100_000, "f: it is nested too deeply"),
    (dict[str, Any], b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}", "f: Invalid JSON: recursion limit exceeded at line 1"),
    (dict[str, Any], b'{"a": ' + b"1" * 5000 + b"}", "f: not JSON: Exceeds the limit"),
    (dict[str, Any], b'{"a": NaN}', "f: not JSON: NaN is no number of JSON"),
    (dict[str, Any], b'{"a": 1', "f: not JSON: Expecting"),
    (dict[str, Any], b"\xff\xfe{\x00}\x00", "f: not JSON: 'utf-8' codec can't decode"),
    (dict[str, Name], b'{"a": "\\ud800"}', "f: Invalid JSON: "),
    (dict[str, Name], b'{"a": "\\u001b[31m"}', r"f: a: must be printable, got '\x1b[31m'"),
    (dict[str, Name], b'{"a": ""}', "f: a: String should have at least 1 character, got ''"),
    (dict[str, Count], b'{"a": 1.0}', "f: a: Input should be a valid integer, got 1.0"),
    (dict[str, Count], b'{"a": true}', "f: a: Input should be a valid integer, got True"),
    (dict[str, Count], b'{"a": ' + b"1" * 100 + b"}", "f: a: Input should be less than 9223372036854775808, got 1111"),
    (dict[str, Positive], b'{"a": 0}', "f: a: Input should be greater than 0, got 0"),
    (dict[str, Positive], b'{"a": 1e999}', "f: a: Input should be a finite number, got inf"),
    (dict[str, Positive], b'{"a": "1"}', "f: a: Input should be a valid number, got '1'"),
    (Digest, b'"' + b"A" * 64 + b'"', "f: String should match pattern"),
    (dict[str, PlanEntry], b'{"a": {}}', "f: a.optimizer: Field required"),
]


@pytest.mark.parametrize(("kind", "text", "message"), REFUSED, ids=[message[:40] for *_, message in REFUSED])
def test_what_does_not_fit_is_one_line(kind: Any, text: bytes, message: str) -> None:
    with pytest.raises(LoopwrightError) as caught:
        Reader(kind).parse(text, "f")
    assert str(caught.value).startswith(message)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_a_plan_is_read_with_all_its_fields_each_of_its_type() -> None:
    reader = Reader[LoopPlan](PlanEntry)
    for plan in (LoopPlan(), LoopPlan(clip=2.0, batch=4, optimizer="sgd", rollback=True)):
        assert reader.parse(json.dumps(plan.as_json()).encode(), "f") == plan
    for change in ({"batch": 1.5}, {"batch": 2.0}, {"rollback": 1}, {"learning_rate": "inf"}, {"clip": "nan"},
                   {"learning_rate": -1}, {"order": ["shuffled"]}, {"order": "backwards"}, {"more": 1}):  # fmt: skip
        with pytest.raises(LoopwrightError, match=next(iter(change))):
            reader.parse(json.dumps(LoopPlan().as_json() | change).encode(), "f")


@given(st.lists(st.floats()))
def test_numbers_come_back_to_the_bit(values: list[float]) -> None:
    text = json.dumps([str(value) if value != value or abs(value) == float("inf") else value for value in values])
    assert [repr(value) for value in Reader[list[float]](list[AnyFloat]).parse(text.encode(), "f")] == [
        repr(value) for value in values
    ]


def test_only_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    sparse, pipe = tmp_path / "sparse", tmp_path / "pipe"
    sparse.write_bytes(b"")
    os.truncate(sparse, 1 << 40)
    os.mkfifo(pipe)
    for path, problem in {
        sparse: "larger than the 1 MB that such a file may have",
        pipe: "it is no file",
        Path("/dev/zero"): "it is no file",
        tmp_path: "it is no file",
        tmp_path / "none": "No such file",
        tmp_path / "a\0b": "null",
    }.items():
        with pytest.raises(BundleError, match=problem):
            read_limited(path, 1 << 20, BundleError)


@pytest.mark.fuzz
@settings(max_examples=10 * settings.default.max_examples)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    for kind in (dict[str, Any], dict[str, PlanEntry], list[Annotated[float, Field(ge=0)]]):
        with suppress(LoopwrightError):
            Reader(kind).parse(text, "f")
