"""Files that are written whole or not at all, and lines that are appended whole or not at all.

Whoever is interrupted, or finds the disk full, leaves what was there before. A failure is one line that names the file.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loopwright.envs.loop.errors import LoopwrightError

_UNFINISHED = re.compile(r"\..+\.\d+(\.\w+)?")


def is_unfinished(path: Path) -> bool:
    """Whether a file is, by its name, what ``writing`` leaves of one where its process is killed."""
    return _UNFINISHED.fullmatch(path.name) is not None


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; what was written there takes its place once it is safe on the disk.

    Raises ``LoopwrightError`` where the disk is full or the folder cannot be written to, and leaves ``path`` as it was.
    """
    # With the ending of the file: libraries go by it, or add one.
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as problem:
        raise LoopwrightError(f"cannot write {path}: {problem.strerror or problem}") from problem


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all. Raises ``LoopwrightError`` as ``writing`` does."""
    with writing(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def append_line(path: Path, line: bytes) -> None:
    """Append a line, its end included, in one call. Raises ``LoopwrightError`` where not all of it could be written.

    What was written of it is then taken back.
    """
    try:
        file = os.open(path, os.O_APPEND | os.O_WRONLY)
        try:
            before = os.fstat(file).st_size
            written = os.write(file, line)
            if written < len(line):
                os.ftruncate(file, before)
        finally:
            os.close(file)
    except OSError as problem:
        raise LoopwrightError(f"cannot append to {path}: {problem.strerror}") from problem
    if written < len(line):
        raise LoopwrightError(f"cannot append to {path}: {written} of {len(line)} bytes were written; is it full?")
