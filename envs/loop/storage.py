"""Files that are written whole or not at all, and lines that are appended whole or not at all.

Whoever is interrupted, or finds the disk full, leaves what was there before. A failure is one line that names the file.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loopwright.envs.loop.errors import LoopwrightError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # what libraries meet as well that write by themselves
_UNFINISHED = re.compile(r"\..+\.\d+\.unfinished(\.\w+)?")


def is_unfinished(path: Path) -> bool:
    """Whether a file is, by its name, what ``writing`` leaves of one where its process is killed."""
    return _UNFINISHED.fullmatch(path.name) is not None


@contextmanager
def in_one_line(what: str, path: Path) -> Iterator[None]:
    """Within it whatever the system refuses is a ``LoopwrightError``: cannot ``what`` ``path``, and why."""
    try:
        yield
    except OSError as problem:
        raise LoopwrightError(f"cannot {what} {path}: {problem.strerror or problem}") from problem


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; what was written there takes its place once it is safe on the disk.

    Raises ``LoopwrightError`` where the disk is full or the folder cannot be written to, and leaves ``path`` as it was.
    """
    with in_one_line("write", path), _beside(path) as beside:
        yield beside
        _sync(beside)
        beside.replace(path)
        _sync_names(path.parent)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all. Raises ``LoopwrightError`` as ``writing`` does."""
    with writing(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def write_new(path: Path, content: bytes) -> bool:
    """As ``write_whole``, but never over a file that is there: whether there was none."""
    with in_one_line("write", path), _beside(path) as beside:
        beside.write_bytes(content)
        _sync(beside)
        try:
            os.link(beside, path)
        except FileExistsError:
            return False
        _sync_names(path.parent)
        return True


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    # With the ending of the file: libraries go by it, or add one.
    beside = path.with_name(f".{path.stem}.{os.getpid()}.unfinished{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield beside
    finally:
        with suppress(OSError):  # what failed before says more
            beside.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _sync_names(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can do that."""
    with suppress(OSError):
        _sync(folder)


def append_line(path: Path, line: bytes, size: int | None = None) -> None:
    """Append a line, its end included, in one call. Raises ``LoopwrightError`` where not all of it could be written.

    What was written of it is then taken back. Where a ``size`` is given, in bytes, a file of another is refused.
    """
    with in_one_line("append to", path):
        file = os.open(path, os.O_APPEND | os.O_WRONLY)
        try:
            before = os.fstat(file).st_size
            if size is not None and before != size:
                raise LoopwrightError(f"cannot append to {path}: it was left with {size} bytes, and now has {before}")
            written = os.write(file, line)
            if written < len(line):
                os.ftruncate(file, before)
        finally:
            os.close(file)
    if written < len(line):
        raise LoopwrightError(f"cannot append to {path}: {written} of {len(line)} bytes were written; is it full?")


def cut_file(path: Path, size: int) -> None:
    """Take off what follows the first ``size`` bytes. Raises ``LoopwrightError`` where that cannot be."""
    with in_one_line("cut", path):
        os.truncate(path, size)
