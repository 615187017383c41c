"""A ledger that somebody else has written: sealed anew, so that only what it says can give it away."""

import copy
import hashlib
import json
import math
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import loopwright
from loopwright.agents.controllers.simple import Constant
from loopwright.agents.judging.runner import run_controller
from loopwright.envs.episode.ledger_fields import LANES_AGAIN, read_checked_ledger
from loopwright.envs.episode.replay import ABSENT, replay
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.errors import LedgerError, LoopwrightError
from loopwright.envs.loop.plan import LoopPlan
from loopwright.envs.loop.sealed import GENESIS
from loopwright.envs.training_loop import TrainingLoopEnv
from loopwright.inner_tasks import get_task
from loopwright.scripts.showing import explain, show_ledger

Line = dict[str, Any]
GIBIBYTE = 2**30


class Originals(NamedTuple):
    """Honest ledgers, line by line: of a run through the environment to its end, of a controller, of a user's loop."""

    run: list[Line]
    constant: list[Line]
    steered: list[Line]

    def __repr__(self) -> str:
        return "Originals"  # hypothesis writes out what it gives


def read_lines(path: Path) -> list[Line]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("previous", "hash")} for line in lines]


def seal(path: Path, lines: list[Any]) -> Path:
    """What a forger would write: any JSON, and more than JSON has, under hashes that are right."""
    previous, written = GENESIS, b""
    for line in lines:
        body = json.dumps(
            line | {"previous": previous} if isinstance(line, dict) else line, separators=(",", ":")
        ).encode()
        previous = hashlib.sha256(body).hexdigest()
        written += body[:-1] + f',"hash":"{previous}"}}\n'.encode()
    path.write_bytes(written)
    return path


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    folder = tmp_path_factory.mktemp("originals")
    short = EpisodeSettings(budget_factor=0.012, ticks_per_decision=4, microbatch=4, control_batch=4)
    env = TrainingLoopEnv(tasks=["breast-cancer:1"], ledgers=folder / "run", settings=short)
    env.action_space.seed(0)
    env.reset(seed=0)
    while not env.step(env.action_space.sample())[2]:
        pass
    controller = Constant(LoopPlan(learning_rate=3e-3))
    run_controller(controller, [get_task("breast-cancer:1")], [1], short, ledgers=folder / "constant")
    with torch.random.fork_rng():
        model = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    steering = loopwright.attach(optimizer, steps=64, prices=None, ledger=folder / "steered" / "run.jsonl")
    for _ in range(64):
        loss = nn.functional.cross_entropy(model(torch.ones(8, 4)), torch.ones(8, dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steering.step(loss)
    kinds = (next((folder / name).glob("*.jsonl")) for name in Originals._fields)
    return Originals(*map(read_lines, kinds))


def test_all_of_a_run_from_its_header_to_its_end_is_exact(originals: Originals, tmp_path: Path) -> None:
    for lines in (originals.run, originals.constant):
        result = replay(seal(tmp_path / "whole.jsonl", lines))
        assert result.exact
        assert len(result.differences) == len(lines) - 1 > 2


def test_a_run_whose_last_line_is_missing_is_unfinished_and_not_exact(originals: Originals, tmp_path: Path) -> None:
    for lines in (originals.run, originals.constant):
        result = replay(seal(tmp_path / "cut.jsonl", lines[:-1]))
        assert (result.same, result.finished, result.exact) == (True, False, False)


def test_a_ledger_without_decisions_has_nothing_to_replay(originals: Originals, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="holds no decision: nothing to replay"):
        replay(seal(tmp_path / "empty.jsonl", originals.run[:1]))


def test_a_loop_of_ones_own_cannot_be_executed_again(originals: Originals, tmp_path: Path) -> None:
    path = seal(tmp_path / "steered.jsonl", originals.steered)
    assert read_checked_ledger(path).entries
    with pytest.raises(LedgerError, match="of a loop of your own, which cannot be executed again"):
        replay(path)


def fields_of(line: Line) -> list[tuple[str, ...]]:
    """Where every field of a line is, those in dicts of it as well."""
    return [(n, *inner) for n, v in line.items() for inner in ([()] + (fields_of(v) if isinstance(v, dict) else []))]


def change(line: Line, field: tuple[str, ...], work: Callable[[Line, str], Any]) -> Line:
    """A copy of a line in which ``work`` was done on the dict that holds the field, and its name."""
    changed: Line = copy.deepcopy(line)
    holder = changed
    for name in field[:-1]:
        holder = holder[name]
    work(holder, field[-1])
    return changed


def remove(holder: Line, name: str) -> None:
    del holder[name]


def rename(holder: Line, name: str) -> None:
    holder[f"{name}_"] = holder.pop(name)


def add(holder: Line, name: str) -> None:
    holder["further"] = holder[name]


@pytest.mark.parametrize("work", [remove, rename, add])
@pytest.mark.parametrize("kind", Originals._fields)
def test_a_field_that_is_missing_renamed_or_too_many_is_found(
    kind: str, work: Callable[[Line, str], None], originals: Originals, tmp_path: Path
) -> None:
    """In the header and in a decision. Where any names are possible, as of features, executing it finds them: below."""
    lines: list[Line] = getattr(originals, kind)
    for number in (0, 2):
        for field in fields_of(lines[number]):
            forged = [*lines[:number], change(lines[number], field, work), *lines[number + 1 :]]
            found = try_to(read_checked_ledger, seal(tmp_path / "forged.jsonl", forged))
            if (field[0] in ("observation", "versions") and len(field) == 2) or (field, work) == (
                ("open_budget",),
                remove,
            ):
                assert not isinstance(found, str)
            else:
                assert f"line {number + 1}" in found or field[-1] in ("format", "steered")


def test_a_header_without_a_field_of_later_versions_is_different(originals: Originals, tmp_path: Path) -> None:
    lines = [{k: v for k, v in originals.run[0].items() if k != "open_budget"}, *originals.run[1:]]
    result = replay(seal(tmp_path / "forged.jsonl", lines))
    assert [(d.name, d.recorded, d.replayed) for d in result.header] == [("open_budget", ABSENT, 0.0)]
    assert not result.exact


def test_a_feature_that_is_missing_or_new_is_a_difference(originals: Originals, tmp_path: Path) -> None:
    lines = copy.deepcopy(originals.run)
    lines[2]["observation"]["wisdom"] = lines[2]["observation"].pop("curvature")
    found = replay(seal(tmp_path / "forged.jsonl", lines)).differences[1]
    assert {(d.name, d.recorded == ABSENT, d.replayed == ABSENT) for d in found} == {
        ("observation.curvature", True, False),
        ("observation.wisdom", False, True),
    }


@pytest.mark.parametrize(
    ("field", "value", "difference"),
    [
        (("budget",), 1e9, "budget"),
        (("target",), 0.9, "target"),
        (("settings", "control_batch"), 8, "cost"),
        (("window",), 5, "window"),
        (("seed",), 7, None),
        (("author", "knobs"), None, "action"),
        (("author", "knobs"), "lr", None),
    ],
)
def test_what_a_header_says_is_compared_too(
    field: tuple[str, ...], value: Any, difference: str | None, originals: Originals, tmp_path: Path
) -> None:
    header = change(originals.run[0], field, lambda holder, name: holder.update({name: value}))
    result = try_to(replay, seal(tmp_path / "forged.jsonl", [header, *originals.run[1:]]))
    if isinstance(result, str):
        assert "this space takes" in result  # an action for other knobs
        return
    assert not result.exact
    if difference in ("budget", "target", "window") and field[0] != "settings":
        assert [(d.name, d.recorded) for d in result.header] == [(difference, value)]
    elif difference is not None:
        assert difference in [d.name for found in (result.header, *result.differences) for d in found]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (("lanes",), 300_000, rf"line 1: lanes: Input should be less than or equal to {LANES_AGAIN}, got 300000"),
        (("lanes",), 0, "line 1: lanes"),
        (("lane",), 1, "lane 1 must be one of 1 lanes"),
        (("settings", "microbatch"), 10**9, "line 1: settings.microbatch"),
        (("settings", "ticks_per_decision"), 10**9, "line 1: settings.ticks_per_decision"),
        (("settings", "device"), "cuda; rm -rf /", "line 1: settings.device"),
        (("settings", "guard"), 2.5, "line 1: settings.guard: Input should be a valid integer, got 2.5"),
        (("seed",), -1, "line 1: seed"),
        (("seed",), 10**400, "line 1: seed: .*, got 1000"),
        (("budget",), math.inf, "line 1: not JSON: Infinity"),
        (("budget",), 10**400, "line 1: budget"),
        (("task",), "atlantis:0", "unknown task family 'atlantis'"),
        (("task",), "os.system('touch canary')", "unknown task family"),
        (("task",), "\x1b[2Jmixtures:2", "line 1: task: must be printable"),
        (("task",), "mixtures:" + "9" * 150, "a task is named family:seed, the seed a number of up to 18 digits"),
        (("task",), None, "line 1: task"),
        (("author", "name"), "\ud800", "line 1: Invalid JSON"),
        (("author", "knobs"), "warp", "unknown knob or knob set 'warp'"),
        (("start", "batch"), 1e200, "line 1: start: batch must be a whole number"),
        (("prices", "sgd"), -1.0, "line 1: prices.sgd"),
        (("needs",), "everything", "line 1: needs: must be one of nothing, control loss, observation"),
        (("withheld",), ["truth"], "line 1: withheld.0: must be one of control, target"),
        (("versions",), {"torch": 3}, "line 1: versions.torch"),
    ],
)
def test_what_a_header_asks_for_is_bounded(
    field: tuple[str, ...], value: Any, message: str, originals: Originals, tmp_path: Path
) -> None:
    header = change(originals.run[0], field, lambda holder, name: holder.update({name: value}))
    with pytest.raises(LoopwrightError, match=message) as caught:
        replay(seal(tmp_path / "forged.jsonl", [header, *originals.run[1:]]))
    assert str(caught.value).isprintable()


def test_a_million_threads_are_those_of_this_machine(originals: Originals, tmp_path: Path) -> None:
    header = originals.run[0] | {"threads": 1_000_000}
    before = torch.get_num_threads()
    result = replay(seal(tmp_path / "forged.jsonl", [header, *originals.run[1:3]]))
    assert result.notes == [f"written with 1000000 threads, replayed with {os.cpu_count()}"]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' + b"9" * 5000, b'{"a":"\xff"', b"{"])
def test_a_line_under_a_hash_of_its_own_that_follows_nothing_is_named(content: bytes, tmp_path: Path) -> None:
    body = content + b"}"
    path = tmp_path / "forged.jsonl"
    path.write_bytes(content + f',"hash":"{hashlib.sha256(body).hexdigest()}"}}\n'.encode())
    with pytest.raises(LedgerError, match="line 1 was changed"):
        replay(path)


def test_what_is_no_ledger_is_not_waited_for_nor_read_whole(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(4 * GIBIBYTE)
    for name, message in (("pipe", "it is no file"), (".", "it is no file"), ("sparse", "larger than the 64 MB")):
        with pytest.raises(LedgerError, match=message):
            replay(tmp_path / name)


def test_what_a_forger_writes_is_shown_as_it_is(originals: Originals, tmp_path: Path) -> None:
    """No markup of the table's, and no picture that fails for what is a formula to it."""
    from loopwright.scripts.showing import draw_ledger

    for lines in originals:
        forged = copy.deepcopy(lines)
        forged[0]["author"]["name"] = "[/red] $\\frac$"
        forged[0]["steered" if "steered" in forged[0] else "task"] = "$\\frac$"
        for line in forged[1:]:
            if line["telemetry"] is not None:
                line["telemetry"]["loss"] = "nan"
        content = read_checked_ledger(seal(tmp_path / "forged.jsonl", forged))
        show_ledger(content, as_json=False)
        draw_ledger(content, tmp_path / "picture.png")


CANARY = "__import__('pathlib').Path('canary').touch()"
STRANGE = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 9), st.floats(), st.text(max_size=5),
    st.sampled_from([300_000, 10**6, 2**31, 2**63, -(2**63), 10**400, -1, 1e300, "inf", "nan", "-inf", "", CANARY,
                     "mixtures:2", "breast-cancer:2", "breast-cancer:999", "drawn", "measured", "cuda", "meta", "all",
                     "box", "LibraryLanes", "\x1b[2J", "\ud800", "[/bold]", [], {}, [[]], {"a": {}}, [1.0] * 40]),
)  # fmt: skip


class Forgery(NamedTuple):
    """How to spoil a ledger: fields of its lines or the lines, which are sealed again, or its bytes."""

    kind: str
    work: str
    places: list[tuple[int, int]]
    values: list[Any]
    how: list[str]
    written: bytes

    def make(self, originals: Originals, path: Path) -> Path:
        lines: list[Any] = list(getattr(originals, self.kind))
        for (a, b), value, how in zip(self.places, self.values, self.how, strict=False):
            at = a % len(lines) if lines and a % 3 else 0  # the header more often
            if self.work == "lines":
                lines[at : at + b % 3] = [lines[b % len(lines)], value][: b % 4] if lines else []
            elif self.work == "fields":
                fields = fields_of(lines[at])
                lines[at] = change(lines[at], fields[b % len(fields)], HOW.get(how) or replace_by(value))
        seal(path, lines)
        if self.work == "bytes":
            whole, (at, length) = path.read_bytes(), self.places[0]
            path.write_bytes(whole[: at % len(whole)] + self.written + whole[at % len(whole) + length % 50 :])
        return path


def replace_by(value: Any) -> Callable[[Line, str], None]:
    return lambda holder, name: holder.update({name: value})


HOW = {"remove": remove, "rename": rename, "add": add}
PLACES = st.tuples(st.integers(0, 2**16), st.integers(0, 2**16))
FORGERIES = st.builds(
    Forgery,
    kind=st.sampled_from(Originals._fields),
    work=st.sampled_from(["fields"] * 6 + ["lines", "bytes"]),
    places=st.lists(PLACES, min_size=1, max_size=3),
    values=st.lists(STRANGE, min_size=3, max_size=3),
    how=st.lists(st.sampled_from([*HOW, *["replace"] * 4]), min_size=3, max_size=3),
    written=st.binary(max_size=3),
)


def try_to(work: Callable[[Path], Any], path: Path) -> Any:
    """What comes of it, or one line of what it says."""
    try:
        return work(path)
    except LoopwrightError as problem:
        said = str(problem)
    assert said.isprintable()
    assert len(said) < 1000
    return said


def explain_all(path: Path) -> None:
    content = read_checked_ledger(path)
    for number in range(len(content.entries)):
        explain(content, number)


@pytest.mark.fuzz
@settings(max_examples=10 * settings.default.max_examples)
@given(forgery=FORGERIES)
def test_whatever_a_ledger_holds_it_is_one_line(
    forgery: Forgery, originals: Originals, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    folder.mkdir(exist_ok=True)
    path, before = forgery.make(originals, folder / "forged.jsonl"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    threads = threading.active_count()  # other tests have left some, and theirs may end meanwhile
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PATH", "")  # no compiler: a loop is not compiled for a header that asks for it
        result = try_to(replay, path)
        assert isinstance(result, str) or result.finished or not result.exact
        try_to(explain_all, path)
    assert os.listdir(folder) == ["forged.jsonl"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024
    assert threading.active_count() <= threads
