"""Results on disk: what is written comes back, nothing is lost, nothing counts twice."""

from pathlib import Path

import pytest

from loopwright.agents.judging.results import ResultsFile, RunRecord, TracePoint, read_results
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.plan import LoopPlan

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
    assert '"clip": ["inf", 2.0]' in (tmp_path / "runs.jsonl").read_text()  # only what changed is written out


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
    with pytest.raises(LoopwrightError, match="counted twice"):
        ResultsFile(path, HEADER, METHODS)


def test_results_of_another_evaluation_or_damaged_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    ResultsFile(path, HEADER, METHODS)
    with pytest.raises(LoopwrightError, match=r"another evaluation \(seeds differ\)"):
        ResultsFile(path, {**HEADER, "seeds": [1]}, METHODS)
    with pytest.raises(LoopwrightError, match=r"another evaluation \(agent differ\)"):
        ResultsFile(path, HEADER, {"agent": ["one", "three"]})
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(LoopwrightError, match="line 2"):
        read_results(path)
    path.write_text('{"format": "other"}\n')
    with pytest.raises(LoopwrightError, match="has format 'other'"):
        read_results(path)
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
