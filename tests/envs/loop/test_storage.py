"""Files that are written whole or not at all: full disks, folders that cannot be written to, who is interrupted."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.storage import append_line, cut_file, is_unfinished, write_new, write_whole, writing


def test_what_is_written_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_whole(path, "one")
    write_whole(path, b"two")
    assert path.read_text() == "two"
    with writing(path) as beside:
        assert beside.suffix == ".json"
        beside.write_text("three")
        assert path.read_text() == "two"
    assert path.read_text() == "three"
    assert list(path.parent.iterdir()) == [path]


def test_who_fails_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "one")

    def fail(problem: BaseException) -> None:
        with writing(path) as beside:
            beside.write_text("half")
            raise problem

    for problem in (KeyboardInterrupt(), ZeroDivisionError()):
        with pytest.raises(type(problem)):
            fail(problem)
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_leaves_is_known_by_its_name(tmp_path: Path) -> None:
    for name in ("checkpoint.zip", "runs.jsonl", "summary"):
        with writing(tmp_path / name) as beside:
            beside.write_text("half")
            assert is_unfinished(beside)
        assert not is_unfinished(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(LoopwrightError, match=r"cannot write .*file: Permission denied"):
        write_whole(tmp_path / "file", "one")


def test_a_file_in_place_of_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LoopwrightError, match=r"cannot write .*inside: (File exists|Not a directory)"):
        write_whole(tmp_path / "file" / "inside", "one")


FULL = """
import resource, signal, sys
from pathlib import Path
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.storage import append_line, write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for work in (lambda: write_whole(Path("whole"), "x" * 2000), lambda: append_line(Path("lines"), b"x" * 600 + b"\\n")):
    try:
        work()
    except LoopwrightError as problem:
        print(problem)
"""


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """Of a file as large as may be, a write takes only a part, or nothing."""
    (tmp_path / "whole").write_text("before")
    (tmp_path / "lines").write_bytes(b"y" * 599 + b"\n")
    result = subprocess.run([sys.executable, "-c", FULL], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        "cannot write whole: File too large",
        "cannot append to lines: 400 of 601 bytes were written; is it full?",
    ]
    assert (tmp_path / "whole").read_text() == "before"
    assert (tmp_path / "lines").read_bytes() == b"y" * 599 + b"\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines", "whole"]


def test_a_new_file_never_takes_the_place_of_one(tmp_path: Path) -> None:
    assert write_new(tmp_path / "file", b"one")
    assert not write_new(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_that_somebody_else_has_written_to_is_not_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\n")
    append_line(path, b"two\n", 4)
    with pytest.raises(LoopwrightError, match="lines: it was left with 4 bytes, and now has 8"):
        append_line(path, b"three\n", 4)
    cut_file(path, 4)
    assert path.read_bytes() == b"one\n"
    with pytest.raises(LoopwrightError, match=r"cannot cut .*nothing: No such file"):
        cut_file(tmp_path / "nothing", 4)


def test_a_line_that_cannot_be_appended_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\n")

    def refuse(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", refuse)
        with pytest.raises(LoopwrightError, match="lines: No space left on device"):
            append_line(path, b"two\n")
    with pytest.raises(LoopwrightError, match="nothing: No such file or directory"):
        append_line(tmp_path / "nothing", b"two\n")
    append_line(path, b"three\n")
    assert path.read_bytes() == b"one\nthree\n"
