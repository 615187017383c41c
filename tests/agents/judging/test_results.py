"""Results on disk: what is written comes back, nothing is lost, nothing counts twice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loopwright.agents.judging.records import read_records
from loopwright.agents.judging.results import RESULTS_KIND, ResultsFile, RunRecord, TracePoint, read_results
from loopwright.agents.judging.timing import TIMINGS_KIND, Timing, TimingsFile
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.plan import LoopPlan
from loopwright.envs.loop.sealed import seal_all

HEADER = {"suites": {"s": ["a"]}, "seeds": [1, 2]}
METHODS = {"agent": ["one", "two"]}
TRACE = (
    TracePoint(256.0, 1.5, LoopPlan()),
    TracePoint(512.0, 1.25, LoopPlan(learning_rate=0.5, clip=2.0, optimizer="sgd")),
)


def record(seed: int, trace: tuple[TracePoint, ...] = ()) -> RunRecord:
    return RunRecord("agent", "a", seed, "hit", 300.5, 900.0, 0.25, 0.75, 1, 280.25, trace)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    written = ResultsFile(tmp_path / "runs.jsonl", HEADER, METHODS)
    written.append(record(1, TRACE))
    written.append(record(2))
    again = ResultsFile(tmp_path / "runs.jsonl", HEADER, METHODS)
    assert again.records == [record(1, TRACE), record(2)]
    assert again.done == {record(1).key, record(2).key}
    assert '"clip":["inf",2.0]' in (tmp_path / "runs.jsonl").read_text()  # only what changed is written out


def test_a_half_written_line_is_cut_off_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    written = ResultsFile(path, HEADER, METHODS)
    for seed in (1, 2):
        written.append(record(seed))
    whole = path.read_bytes()
    for length in range(whole.rstrip(b"\n").rfind(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:length])
        again = ResultsFile(path, HEADER, METHODS)
        assert again.records == [record(1)]
        again.append(record(2))
        assert path.read_bytes() == whole


def test_no_run_counts_twice(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    written = ResultsFile(path, HEADER, METHODS)
    written.append(record(1))
    with pytest.raises(LoopwrightError, match="already holds the run"):
        written.append(record(1))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1]]))
    with pytest.raises(LoopwrightError, match="line 3 was changed"):
        ResultsFile(path, HEADER, METHODS)
    path.write_bytes(seal_all([written.header, record(1).as_json(), record(1).as_json()])[0])
    with pytest.raises(LoopwrightError, match=r"line 3: the run .* is counted twice"):
        ResultsFile(path, HEADER, METHODS)


def test_results_of_another_evaluation_or_damaged_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    ResultsFile(path, HEADER, METHODS)
    with pytest.raises(LoopwrightError, match=r"another evaluation \(seeds differ\)"):
        ResultsFile(path, {**HEADER, "seeds": [1]}, METHODS)
    with pytest.raises(LoopwrightError, match=r"another evaluation \(agent differ\)"):
        ResultsFile(path, HEADER, {"agent": ["one", "three"]})
    with pytest.raises(LoopwrightError, match="no results"):
        read_results(tmp_path / "nothing")


def test_methods_can_be_added_later(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    first = ResultsFile(path, HEADER, METHODS)
    first.append(record(1))
    more = ResultsFile(path, HEADER, {**METHODS, "SOAP": ["three"]})
    assert more.records == [record(1)]
    more.append(record(2))
    fewer = ResultsFile(path, HEADER, {"SOAP": ["three"]})
    assert fewer.records == [record(1), record(2)]
    ResultsFile(path, HEADER, {"agent": ["one", "two", "four"]})
    header, records = read_results(path)
    assert header["methods"] == {"agent": ["one", "two", "four"], "SOAP": ["three"]}
    assert path.read_text().count("format") == 3
    assert records == [record(1), record(2)]


def forge(path: Path, kind: Any, header: dict[str, Any], entry: dict[str, Any]) -> None:
    """A file whose seals are right, whatever is in it."""
    path.write_bytes(seal_all([{"format": kind.format, **header}, entry])[0])
    read_records(path, kind)


FULL = {**HEADER, "methods": METHODS}
LONG = "x" * 300
NOT_RUNS: list[tuple[dict[str, Any], str]] = [
    ({"cost": -5}, "cost: Input should be greater than 0, got -5"),
    ({"cost": 0}, "cost: Input should be greater than 0, got 0"),
    ({"cost": "nan"}, "cost: Input should be a valid number, got 'nan'"),
    ({"cost": 901.0}, "cost 901.0 is above the budget 900.0"),
    ({"outcome": "miss"}, "a miss costs the budget, not 300.5"),
    ({"outcome": "foo"}, "outcome: must be one of hit, miss, diverged, got 'foo'"),
    ({"outcome": "running"}, "outcome: must be one of hit, miss, diverged, got 'running'"),
    ({"budget": 0}, "budget: Input should be greater than 0, got 0"),
    ({"budget": "inf"}, "budget: Input should be a valid number, got 'inf'"),
    ({"final_loss": "much"}, "final_loss: Input should be a valid number, got 'much'"),
    ({"easier_cost": 1000.0}, "easier_cost 1000.0 is above the budget"),
    ({"easier_cost": -1.0}, "easier_cost: Input should be greater than 0"),
    ({"training": 2}, "the header names no training 2 of 'agent'"),
    ({"training": True}, "training: Input should be a valid integer, got True"),
    ({"method": "another"}, "the header names no training 1 of 'another'"),
    ({"method": LONG}, "method: String should have at most 200 characters"),
    ({"task": "b"}, "the header names no task 'b'"),
    ({"seed": 3}, "the header names no seed 3"),
    ({"seed": 10**30}, "seed: Input should be less than 9223372036854775808"),
    ({"more": 1}, "more: Unexpected keyword argument, got 1"),
    ({"trace": {}}, "trace.cost: Field required"),
    ({"trace": {"cost": [1.0], "loss": [], "first": {}, "changed": {}}}, "trace: columns of the lengths 0, 1"),
    ({"trace": {"cost": [1.0], "loss": [1.0], "first": {}, "changed": {}}}, "trace.optimizer: Field required"),
]


@pytest.mark.parametrize(("change", "problem"), NOT_RUNS, ids=[problem[:40] for _, problem in NOT_RUNS])
def test_what_cannot_be_a_run_is_refused_whatever_its_seal(
    change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    forge(tmp_path / "runs.jsonl", RESULTS_KIND, FULL, record(1, TRACE).as_json())
    with pytest.raises(LoopwrightError, match=f"runs.jsonl, line 2: {problem}"):
        forge(tmp_path / "runs.jsonl", RESULTS_KIND, FULL, record(1).as_json() | change)


@pytest.mark.parametrize("missing", ["method", "task", "seed", "outcome", "cost", "budget", "final_loss"])
def test_a_run_without_an_entry_is_refused(missing: str, tmp_path: Path) -> None:
    entry = {name: value for name, value in record(1).as_json().items() if name != missing}
    with pytest.raises(LoopwrightError, match=f"line 2: {missing}: Field required"):
        forge(tmp_path / "runs.jsonl", RESULTS_KIND, FULL, entry)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"methods": None}, "methods: Field required"),
        ({"methods": {}}, "the header names no training 1 of 'agent'"),
        ({"methods": {"agent": []}}, "methods.agent: List should have at least 1 item"),
        ({"methods": {"agent": [""]}}, "methods.agent.0: String should have at least 1 character"),
        ({"suites": None}, "suites: Field required"),
        ({"seeds": ["1"]}, "seeds.0: Input should be a valid integer, got '1'"),
        ({"format": "other"}, "format 'other'; this version reads 'loopwright-results-2'"),
        ({"format": 3}, "format: Input should be a valid string, got 3"),
        ({"more": 1}, "more: Extra inputs are not permitted, got 1"),
    ],
)  # fmt: skip
def test_a_header_says_what_the_runs_belong_to(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    header = {name: value for name, value in (FULL | change).items() if value is not None}
    with pytest.raises(LoopwrightError, match=f"runs.jsonl, line [12]: {problem}"):
        forge(tmp_path / "runs.jsonl", RESULTS_KIND, header, record(1).as_json())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"rounds": [1e-5, -1e-5]}, "rounds.1: Input should be greater than 0, got -1e-05"),
        ({"rounds": []}, "rounds: Tuple should have at least 1 item"),
        ({"overhead": 1.5}, "overhead: Input should be less than or equal to 1, got 1.5"),
        ({"overhead": "nan"}, "overhead: Input should be a valid number, got 'nan'"),
        ({"method": "another"}, "the header names no method 'another'"),
    ],
)
def test_what_cannot_be_a_timing_is_refused(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    timing = Timing("agent", "a", (1e-5, 2e-5), 0.25)
    forge(tmp_path / "timings.jsonl", TIMINGS_KIND, FULL, timing.as_json())
    with pytest.raises(LoopwrightError, match=f"timings.jsonl, line 2: {problem}"):
        forge(tmp_path / "timings.jsonl", TIMINGS_KIND, FULL, timing.as_json() | change)


def test_timings_are_replaced_task_by_task_and_belong_to_their_methods(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    kept = TimingsFile(path, HEADER, METHODS)
    for rate in (1e-5, 2e-5):
        kept.replace("a", [Timing("agent", "a", (rate,), 0.25)])
        assert TimingsFile(path, HEADER, METHODS).records == [Timing("agent", "a", (rate,), 0.25)]
    kept.append(Timing("agent", "b", (1e-5,), 0.0))  # after a rewriting the chain goes on
    assert [timing.task for timing in TimingsFile(path, HEADER, METHODS).records] == ["a", "b"]
    with pytest.raises(LoopwrightError, match=r"timings of another evaluation \(agent differ\)"):
        TimingsFile(path, HEADER, {"agent": ["three"]})


@pytest.mark.parametrize(
    "open_", [lambda p: ResultsFile(p, HEADER, METHODS), lambda p: TimingsFile(p, HEADER, METHODS)]
)
def test_a_file_of_an_older_version_says_how_to_go_on(open_: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "old.jsonl"
    path.write_text(json.dumps({"format": "loopwright-results-1", **FULL}) + "\n")
    with pytest.raises(LoopwrightError, match=r"line 1 carries no seal: an older .* evaluate again"):
        open_(path)
    assert path.read_text().startswith('{"format": "loopwright-results-1"')  # and is left as it was


def test_any_changed_byte_of_a_results_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    written = ResultsFile(path, HEADER, METHODS)
    for seed in (1, 2):
        written.append(record(seed))
    whole = path.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(LoopwrightError, match=r"was changed|carries no seal"):
            read_results(path)
