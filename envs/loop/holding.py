"""Holding a folder or a file: one process at a time works on it, and the next is told in one line who does.

The lock is the kernel's, so that whoever is killed lets go of it. Its file (``.lock`` in a folder, ``.NAME.lock``
beside a file) says who holds it, and stays. Within a process it can be taken again.
"""

import glob
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.storage import in_one_line, is_unfinished

LOCK = ".lock"
PATIENCE = 0.5  # seconds, after which whoever took the lock has said who it is


@contextmanager
def holding_folder(folder: Path) -> Iterator[None]:
    """Within it nobody else works in ``folder``, which is made where it is missing.

    What a killed process left unfinished there is removed. Raises ``LoopwrightError`` as ``lock_file`` does.
    """
    lock = _lock(folder, folder / LOCK)
    try:
        for path in folder.iterdir():
            if is_unfinished(path):
                path.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


@contextmanager
def holding_file(path: Path) -> Iterator[None]:
    """Within it nobody else replaces ``path``. Raises ``LoopwrightError`` as ``lock_file`` does."""
    lock = lock_file(path)
    try:
        yield
    finally:
        lock.release()


def lock_file(path: Path) -> BaseFileLock:
    """Hold ``path``, which need not exist, for as long as the lock that is returned is referred to.

    What a killed process left of it unfinished is removed.
    Raises ``LoopwrightError`` where another process holds it, and names that, or where its folder cannot be written to.
    """
    lock = _lock(path, path.with_name(f".{path.name}{LOCK}"))
    if lock.lock_counter == 1:
        for left in path.parent.glob(f".{glob.escape(path.stem)}.*"):
            if is_unfinished(left) and left.suffix == path.suffix:
                left.unlink(missing_ok=True)
    return lock


def _lock(what: Path, file: Path) -> BaseFileLock:
    with in_one_line("write", file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, is_singleton=True, thread_local=False)
        try:
            lock.acquire(timeout=PATIENCE, poll_interval=PATIENCE / 10)
        except Timeout:
            said = file.read_text(errors="replace").partition("\n")[0]
            raise LoopwrightError(f"{what} is in use by {said or 'another process'}") from None
        if lock.lock_counter == 1:
            file.write_text(_describe_process() + "\n")
    return lock


def _describe_process() -> str:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return f"process {os.getpid()} ({command:.200}), since {datetime.now():%Y-%m-%d %H:%M:%S}"
