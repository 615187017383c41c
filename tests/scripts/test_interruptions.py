"""Nothing is lost: kills at any moment, signals, two processes at once, full disks, and clocks that are set back."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from lives import ONE, WORK, list_left

from loopwright.agents.controllers.simple import Constant
from loopwright.agents.judging.judge import judge
from loopwright.agents.training.checkpoint import CHECKPOINT
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.holding import LOCK, holding_file, holding_folder
from loopwright.envs.loop.ledger import Ledger, read_ledger
from loopwright.envs.loop.plan import LoopPlan
from loopwright.scripts import calibrate as scripts_calibrate
from loopwright.scripts import prices as scripts_prices
from loopwright.scripts import tune as scripts_tune
from loopwright.scripts.ending import ending_in_order, run_to_end
from loopwright.scripts.main import main
from loopwright.scripts.run import run
from loopwright.scripts.tasks import Config

LIVES = Path(__file__).parents[1] / "lives.py"
COMMAND = [sys.executable, "-W", "ignore", "-m", "loopwright.scripts.main"]
NO_COMPILER = {**os.environ, "PATH": ""}  # it would not pay
FEW = {"train": 3, "evaluate": 3, "attach": 6}  # kills; what else there is takes minutes


def list_session(leader: int) -> list[int]:
    """The processes that one which began a session has started, itself included."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def wait_for_nobody(leader: int, seconds: float = 30.0) -> list[int]:
    """Who of a session is there after so many seconds."""
    until = time.monotonic() + seconds
    while list_session(leader) and time.monotonic() < until:
        time.sleep(0.05)
    return list_session(leader)


def check_lives(name: str, folder: Path, kills: int) -> None:
    """The first life of the work is undisturbed; whatever was killed and came to its end came to the same."""
    command = [sys.executable, "-W", "ignore", str(LIVES), name, str(folder), str(kills), "0"]
    with subprocess.Popen(
        command, env=NO_COMPILER, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        said, problem = process.communicate(timeout=3600)
    assert process.returncode == 0, problem
    ends = int(said.splitlines()[-1])
    assert ends > 1
    read = WORK[name][1]
    expected = read(folder / "0")
    for number in range(1, ends):
        assert read(folder / str(number)) == expected
        assert list_left(folder / str(number)) == []
    assert wait_for_nobody(process.pid) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_who_is_killed_and_goes_on_comes_to_the_same(name: str, tmp_path: Path) -> None:
    check_lives(name, tmp_path, FEW[name])


@pytest.mark.nightly
@pytest.mark.parametrize("name", WORK)
def test_who_is_killed_a_hundred_times_comes_to_the_same(name: str, tmp_path: Path) -> None:
    check_lives(name, tmp_path, 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", pytest.param("evaluate", marks=pytest.mark.nightly), "attach"])
def test_what_meets_a_full_disk_says_so_in_a_line_and_goes_on_when_there_is_space(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", str(LIVES), name, str(tmp_path), "full"]
    result = subprocess.run(command, env=NO_COMPILER, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 6
    assert all("File too large" in line or "bytes were written" in line for line in errors), errors
    read = WORK[name][1]
    assert read(tmp_path / "1") == read(tmp_path / "0")


@pytest.mark.parametrize("name", ["train", "attach"])
def test_a_clock_that_is_set_back_changes_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, read = WORK[name]
    work(tmp_path / "0")
    now, wall = [time.time()], time.time_ns()

    def go_back() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", go_back)
    monkeypatch.setattr(time, "time_ns", lambda: wall - int((wall / 1e9 - go_back()) * 1e9))
    work(tmp_path / "1")
    assert read(tmp_path / "1") == read(tmp_path / "0")


HOLDER = """
import sys, time
from pathlib import Path
from loopwright.envs.loop.holding import holding_folder, lock_file
folder = Path(sys.argv[1])
with holding_folder(folder), holding_folder(folder / "demo"):
    held = [lock_file(folder / name) for name in ("targets.json", "tuned.json", "prices.json", "run.jsonl",
                                                  "docs/results/scores.json")]
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, that works on everything in ``tmp_path``."""
    command = [sys.executable, "-W", "ignore", "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_process_is_told_in_a_line_who_the_first_is(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scripts_calibrate, "TARGETS_FILE", tmp_path / "targets.json")
    monkeypatch.setattr(scripts_tune, "TUNED_FILE", tmp_path / "tuned.json")
    monkeypatch.setattr(scripts_prices, "PRICES_FILE", tmp_path / "prices.json")
    folder, docs = ("--folder", str(tmp_path)), ("--docs", str(tmp_path / "docs"))
    for command in (
        ("train", *folder), ("evaluate", "core", *folder), ("programs", *folder), ("scores", *docs),
        ("demo", "--folder", str(tmp_path / "demo")), ("calibrate",), ("tune",), ("prices",),
    ):  # fmt: skip
        assert main(list(command)) == 2, command
        said = capsys.readouterr().err.splitlines()
        assert re.search(rf"in use by process {holder.pid} \(-c .*\), since \d{{4}}-\d\d-\d\d ", said[-1]), said
    for use in (
        lambda: Ledger.create(tmp_path / "run.jsonl", {}),
        lambda: judge([Constant(LoopPlan())], [ONE], tmp_path),
    ):
        with pytest.raises(LoopwrightError, match=f"in use by process {holder.pid} "):
            use()
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["demo", "docs"]


def test_a_process_that_is_killed_lets_go(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    left = tmp_path / ".checkpoint.77.unfinished.zip"
    left.write_text("half")
    with pytest.raises(LoopwrightError, match="in use"), holding_folder(tmp_path):
        pass
    assert left.exists()
    holder.kill()
    holder.wait()
    with holding_folder(tmp_path), holding_folder(tmp_path):  # within a process again and again
        assert not left.exists()
        assert f"process {os.getpid()} " in (tmp_path / LOCK).read_text()
    with holding_file(tmp_path / "targets.json"):
        pass


def test_a_ledger_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    first = Ledger.create(path, {})
    code = (
        f"from pathlib import Path; from loopwright.envs.loop.ledger import Ledger; Ledger.resume(Path({str(path)!r}))"
    )
    second = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert f"run.jsonl is in use by process {os.getpid()} " in second.stderr
    first.append({"decision": 0})
    with path.open("ab") as file:
        file.write(b"somebody who does not ask\n")
    with pytest.raises(LoopwrightError, match=r"run\.jsonl: it was left with \d+ bytes, and now has \d+"):
        first.append({"decision": 1})
    unheld = Ledger.create(tmp_path / "unheld.jsonl", {}, hold=False)
    unheld.append({"decision": 0})
    assert sorted(p.name for p in tmp_path.iterdir()) == [".run.jsonl.lock", "run.jsonl", "unheld.jsonl"]
    assert len(read_ledger(unheld.path).entries) == 1


def test_a_file_in_the_place_of_a_folder_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a folder that cannot be written to is, for who is not root."""
    (tmp_path / "file").write_text("")
    inside = str(tmp_path / "file" / "inside")
    for command in (
        ("train", "--folder", inside), ("evaluate", "core", "--folder", inside), ("programs", "--folder", inside),
        ("scores", "--docs", inside), ("demo", "--folder", inside),
    ):  # fmt: skip
        assert main(list(command)) == 2, command
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert line == f"error: {tmp_path / 'file'} is a file; give a folder", command
    with pytest.raises(LoopwrightError, match=r"cannot write .*Not a directory"):
        Ledger.create(Path(inside) / "run.jsonl", {})


def test_signals_end_a_command_as_ctrl_c_does(capsys: pytest.CaptureFixture[str]) -> None:
    saved = []

    def work(number: int) -> int:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        except KeyboardInterrupt:
            if number != signal.SIGINT:
                os.kill(os.getpid(), number)  # whoever asks twice does not interrupt the saving
            saved.append(number)
            raise
        return 0

    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        before = signal.getsignal(number)
        assert run_to_end(lambda number=number: work(number)) == status
        assert capsys.readouterr().err == "interrupted\n"
        assert signal.getsignal(number) == before
        assert saved.pop() == number


def test_what_fails_while_a_command_ends_does_not_hide_that_it_was_ended(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            raise RuntimeError("cannot join thread before it is started")

    assert run_to_end(work) == 143
    assert capsys.readouterr().err == (
        "while ending: RuntimeError: cannot join thread before it is started\ninterrupted\n"
    )
    with pytest.raises(ZeroDivisionError):
        run_to_end(lambda: 1 // 0)


def test_a_signal_that_is_ignored_still_is() -> None:
    """What nohup starts outlives the terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_in_order():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def end(arguments: Sequence[str], cwd: Path, number: int, ready: Callable[[int], bool]) -> str:
    """What a command says that is sent a signal once it is ``ready``; soon nobody of it is there."""
    with subprocess.Popen(
        [*COMMAND, *arguments], cwd=cwd, env=NO_COMPILER, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        while process.poll() is None and not ready(process.pid):
            time.sleep(0.02)
        process.send_signal(number)
        said = process.communicate(timeout=600)[1]
    assert process.returncode == 128 + number, said
    assert wait_for_nobody(process.pid) == []
    assert said.splitlines()[-1] == "interrupted"
    assert not [line for line in said.splitlines() if "leaked" in line or "Traceback" in line or "Warning" in line], (
        said
    )
    return said


def test_a_signal_to_end_that_python_swallows_is_raised_again() -> None:
    class Finalized:
        def __del__(self) -> None:  # whatever is raised here goes no further
            signal.raise_signal(signal.SIGTERM)

    def work() -> int:
        Finalized()
        time.sleep(60)
        return 0

    assert run_to_end(work) == 143


@pytest.mark.slow
def test_an_evaluation_that_is_ended_leaves_no_process(tmp_path: Path) -> None:
    arguments = (
        "evaluate",
        "core",
        "--suite",
        "demo-new",
        "--seeds",
        "9",
        "--competitors",
        "constant",
        "--workers",
        "2",
    )
    end(arguments, tmp_path, signal.SIGTERM, lambda leader: len(list_session(leader)) >= 5)


@pytest.mark.slow
def test_a_training_that_is_ended_leaves_a_checkpoint(tmp_path: Path) -> None:
    arguments = ("train", "--folder", "agent", "--lanes", "4", "--suite", "demo-new", "--no-compile")
    end(arguments, tmp_path, signal.SIGHUP, lambda _: any((tmp_path / "agent").glob("tensorboard/*/events*")))
    assert (tmp_path / "agent" / CHECKPOINT).exists()
    assert list_left(tmp_path / "agent") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_that_a_library_meets_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    command = ModuleType("log")
    vars(command).update(__file__="log.py", Config=Config, main=lambda _: Path("/dev/full").write_text("more"))
    assert run(command, []) == 2
    assert capsys.readouterr().err == "error: No space left on device: while writing\n"
