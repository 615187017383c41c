"""Workers: what they give, and that none is left."""

import os
import time
from pathlib import Path

import pytest

from loopwright.agents.judging.workers import work_apart


def list_children() -> list[int]:
    return [int(pid) for path in Path("/proc/self/task").iterdir() for pid in (path / "children").read_text().split()]


def list_workers() -> list[int]:
    found = {pid: Path(f"/proc/{pid}/cmdline") for pid in list_children()}
    return [pid for pid, path in found.items() if path.exists() and b"LokyProcess" in path.read_bytes()]


def test_one_worker_is_this_process() -> None:
    seen: list[int] = []
    assert list(work_apart(seen.append, [(1,), (2,)], 1)) == [None, None]
    assert seen == [1, 2]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are counted in /proc")
def test_workers_whose_results_nobody_wants_are_killed() -> None:
    """And without a warning, which would be an error here."""
    results = work_apart(time.sleep, [(0.01,), *[(60.0,)] * 50], 2)
    assert next(results) is None
    assert len(list_workers()) == 2
    results.close()
    until = time.monotonic() + 30
    while list_workers() and time.monotonic() < until:  # they are told to end, and do so by themselves
        time.sleep(0.05)
    assert list_workers() == []


def grow(megabytes: int) -> int:
    """Keep so much memory, for longer than a worker's memory goes unlooked at; the process that did it."""
    time.sleep(1.1)
    vars(os).setdefault("kept", []).append(b"1" * (megabytes << 20))  # this module is sent along anew each time
    return os.getpid()


@pytest.mark.filterwarnings("ignore:A worker stopped")  # as an error it would stop what waits for workers
def test_a_worker_that_has_grown_goes_on() -> None:
    """What it has compiled is memory, and what it would compile again if it were started anew."""
    assert len(set(work_apart(grow, [(350,)] * 6, 2))) <= 2
