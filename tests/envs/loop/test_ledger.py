"""The audit log: sealed line by line, safe against being killed, and executed again to the bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from loopwright.agents.controllers.competitors import COMPETITORS
from loopwright.agents.controllers.simple import Constant
from loopwright.agents.judging.runner import run_controller
from loopwright.envs.episode.replay import replay
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.errors import LedgerError
from loopwright.envs.loop.ledger import Ledger, read_ledger
from loopwright.envs.loop.plan import LoopPlan
from loopwright.envs.training_loop import TrainingLoopEnv
from loopwright.envs.vector import TrainingLoopVectorEnv
from loopwright.inner_tasks import Task

ROOT = Path(__file__).parents[3]


def write_run(folder: Path, decisions: int = 4) -> Path:
    """A ledger of a few random decisions through the environment."""
    env = TrainingLoopEnv(tasks=["breast-cancer:1"], ledgers=folder)
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(decisions):
        env.step(env.action_space.sample())
    (path,) = folder.glob("*.jsonl")
    return path


def test_a_ledger_says_what_was_seen_changed_and_came_of_it(tmp_path: Path) -> None:
    content = read_ledger(write_run(tmp_path))
    assert {"task", "seed", "versions", "author", "settings", "target", "budget"} <= set(content.header)
    assert len(content.entries) == 4
    for number, entry in enumerate(content.entries):
        assert entry["decision"] == number
        assert {"observation", "action", "plan_before", "plan", "verdict", "telemetry", "cost", "outcome"} <= set(entry)
        assert entry["observation"]["budget_left"] <= 1
    assert content.entries[0]["plan_before"] == content.header["start"]


@pytest.mark.parametrize("lanes", [1, 7])
def test_replay_is_exact_whatever_the_batch(lanes: int, tmp_path: Path) -> None:
    settings = EpisodeSettings(budget_factor=0.4)
    envs = TrainingLoopVectorEnv(
        lanes, tasks=["breast-cancer:1", "breast-cancer:2"], ledgers=tmp_path, settings=settings
    )
    envs.action_space.seed(1)
    envs.reset(seed=1)
    for _ in range(14):
        envs.step(envs.action_space.sample())
    paths = sorted(tmp_path.glob("*.jsonl"))
    assert len(paths) > lanes  # some episodes ended, and others began
    results = [replay(path) for path in paths[:6]]
    assert all(result.same for result in results)
    ended = [read_ledger(path).entries[-1]["outcome"] != "running" for path in paths[:6]]
    assert [result.exact for result in results] == ended
    assert any(ended)


def test_a_ledger_of_another_process_replays_exactly(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(ROOT / "tests" / "envs" / "loop")!r})
from pathlib import Path; from test_ledger import write_run
write_run(Path({str(tmp_path)!r}), 6)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=300)
    (path,) = tmp_path.glob("*.jsonl")
    result = replay(path)
    assert result.same
    assert len(result.differences) == 6
    assert not result.notes


def test_a_controllers_ledger_replays_exactly(tmp_path: Path, small_task: Task) -> None:
    controller = Constant(LoopPlan(learning_rate=3e-3))
    run_controller(controller, [small_task], [1, 2], EpisodeSettings(budget_factor=0.5), ledgers=tmp_path)
    paths = sorted(tmp_path.glob("*.jsonl"))
    assert len(paths) == 2
    for path in paths:
        content = read_ledger(path)
        assert content.header["author"] == {"name": "constant", "fingerprint": repr(controller), "knobs": None,
                                            "action": None}  # fmt: skip
        assert content.entries[-1]["outcome"] != "running"
        assert replay(path).exact


def test_a_plan_that_is_not_what_the_action_makes_is_found(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    content = read_ledger(path)
    forged = Ledger.create(tmp_path / "forged.jsonl", {k: v for k, v in content.header.items() if k != "format"})
    for entry in content.entries:
        if entry["decision"] == 2:
            entry["plan"]["learning_rate"] *= 1.5
        forged.append(entry)
    result = replay(forged.path)  # the seals are right, the run is not
    assert not result.exact
    assert not any(result.differences[:2])
    assert "plan" in [difference.name for difference in result.differences[2]]
    assert any(difference.name.startswith("telemetry") for difference in result.differences[2])


def test_a_run_that_ends_elsewhere_than_its_record_differs(tmp_path: Path, small_task: Task) -> None:
    settings = EpisodeSettings(budget_factor=0.3)
    run_controller(Constant(LoopPlan(learning_rate=3e-3)), [small_task], [1], settings, ledgers=tmp_path)
    (path,) = tmp_path.glob("*.jsonl")
    content = read_ledger(path)
    header = {k: v for k, v in content.header.items() if k != "format"}
    last = content.entries[-1]
    assert last["outcome"] == "miss"
    longer = Ledger.create(tmp_path / "longer.jsonl", header)
    for number, entry in enumerate([*content.entries, last, last]):
        longer.append({**entry, "decision": number})
    result = replay(longer.path)
    assert [bool(found) for found in result.differences] == [False] * len(content.entries) + [True, True]
    assert [(d.name, d.replayed) for d in result.differences[-1]] == [("decision", None)]
    shorter = Ledger.create(tmp_path / "shorter.jsonl", header)
    for entry in content.entries[:-2]:
        shorter.append(entry)
    shorter.append({**content.entries[-2], "outcome": "miss"})
    found = replay(shorter.path).differences
    assert [d.name for d in found[-1]] == ["outcome"]


def test_a_ledger_of_a_library_optimizer_is_refused_by_name(tmp_path: Path, small_task: Task) -> None:
    controller = next(COMPETITORS["Muon"].candidates(1))
    run_controller(controller, [small_task], [1], EpisodeSettings(budget_factor=0.1), ledgers=tmp_path)
    (path,) = tmp_path.glob("*.jsonl")
    assert read_ledger(path).header["engine"] == "LibraryLanes"
    with pytest.raises(LedgerError, match="LibraryLanes, where the optimizer of 'Muon' made the updates"):
        replay(path)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_a_truncated_episode_has_a_line_for_each_of_its_decisions(mode: str, tmp_path: Path) -> None:
    envs = TrainingLoopVectorEnv(
        2, tasks=["breast-cancer:1"], ledgers=tmp_path, max_episode_steps=3, autoreset_mode=mode
    )
    envs.reset(seed=0)
    for _ in range(7 if mode == "NextStep" else 6):
        envs.step(envs.action_space.sample())
    lines = sorted(len(read_ledger(path).entries) for path in tmp_path.glob("*.jsonl"))
    assert lines == [3] * 4 if mode == "NextStep" else [0, 0, 3, 3, 3, 3]


def test_any_changed_byte_is_found_and_its_line_named(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    whole = path.read_bytes()
    rng = random.Random(0)
    places = [*rng.sample(range(len(whole)), 300), 0, len(whole) - 1, whole.index(b"\n"), len(whole) - 2]
    for place in places:
        for new in {whole[place] ^ 1, ord("\n"), ord(" ")} - {whole[place]}:
            path.write_bytes(whole[:place] + bytes([new]) + whole[place + 1 :])
            line = whole[:place].count(b"\n") + 1
            with pytest.raises(LedgerError, match=rf"line {line} was changed"):
                read_ledger(path)


def test_lines_removed_or_exchanged_are_found(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    for broken, number in (([*lines[:2], *lines[3:]], 3), ([lines[0], lines[2], lines[1]], 2)):
        path.write_bytes(b"".join(broken))
        with pytest.raises(LedgerError, match=f"line {number} was changed"):
            read_ledger(path)
    path.write_bytes(b"")
    with pytest.raises(LedgerError, match="holds no header"):
        read_ledger(path)
    with pytest.raises(LedgerError, match="cannot read"):
        read_ledger(tmp_path / "nothing.jsonl")
    with pytest.raises(LedgerError, match="never overwritten"):
        Ledger.create(path, {})


def test_a_torn_last_line_is_cut_and_written_on(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for end in (start + 1, start + 100, len(whole) - 70, len(whole) - 1):
        path.write_bytes(whole[:end])
        content = read_ledger(path)
        assert (len(content.entries), content.torn) == (3, end - start)
        assert replay(path).same
        Ledger.resume(path).append({"decision": 3})
        again = read_ledger(path)
        assert (again.entries[-1], again.torn) == ({"decision": 3}, 0)


WRITER = """
import sys
from pathlib import Path
from loopwright.envs.loop.ledger import Ledger
path = Path(sys.argv[1])
ledger = Ledger.resume(path) if path.exists() else Ledger.create(path, {"task": "none"})
print("ready", flush=True)
number = 0
while True:
    ledger.append({"decision": number, "observation": [0.1 * i for i in range(400)]})
    number += 1
"""


def test_kill_9_at_any_moment_leaves_a_readable_ledger(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    rng = random.Random(0)
    written = 0
    # One process is killed while it starts, and many while they write; a fork each, since an import takes seconds.
    import loopwright.envs.loop.ledger  # noqa: F401

    kills, longest = 0, 0.03
    while kills < 50 or written <= 50:
        kills += 1
        assert kills < 1000, f"a thousand processes wrote {written} entries"
        longest *= 1.0 if written > kills else 1.05  # on a busy machine they write little in that time
        child = os.fork()
        if child == 0:
            sys.argv = ["writer", str(path)]
            with open(os.devnull, "w") as sys.stdout:
                exec(WRITER, {})
        time.sleep(rng.uniform(0.0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if path.exists():
            content = read_ledger(path)
            assert len(content.entries) >= written
            written = len(content.entries)
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["run.jsonl"]
    entries = read_ledger(path).entries  # each process began to count anew, and left none out
    for before, entry in pairwise(entries):
        assert entry["decision"] in (0, before["decision"] + 1)


def test_a_replay_says_what_it_lacks(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    content = read_ledger(path)
    header = {k: v for k, v in content.header.items() if k != "format"}
    for name, change, match in (
        ("other", {"task_fingerprint": "0" * 64}, "not the one the ledger was written on"),
        ("gone", {"task": "atlantis:0"}, "unknown task family"),
    ):
        forged = Ledger.create(tmp_path / f"{name}.jsonl", header | change)
        with pytest.raises(ValueError, match=match):
            replay(forged.path)
    old = Ledger.create(tmp_path / "old.jsonl", header | {"versions": header["versions"] | {"torch": "1.0"}})
    for entry in content.entries:
        old.append(entry)
    assert replay(old.path).notes[0].startswith("written with torch 1.0")


def test_every_line_is_plain_json(tmp_path: Path) -> None:
    for line in write_run(tmp_path).read_text().splitlines():
        values = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert len(values["hash"]) == 64
    assert np.isfinite(read_ledger(next(iter(tmp_path.glob("*.jsonl")))).entries[0]["reward"])
