"""Ledger: the audit log of one run. One JSON line per decision after a header, each line sealed by a hash chain.

A line says what the controller saw, what it changed, and what came of it; it is sealed and appended as ``sealed`` says.
``envs.episode.recorder`` writes the ledgers of an environment's episodes, ``envs.episode.replay`` executes one again.
"""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loopwright.envs.loop.errors import LedgerError, LedgerExistsError
from loopwright.envs.loop.holding import lock_file
from loopwright.envs.loop.observation import OBSERVATION_VERSION
from loopwright.envs.loop.sealed import GENESIS, SealedLines, cut_torn_line, read_sealed, seal
from loopwright.envs.loop.storage import cut_file, write_new
from loopwright.envs.loop.untrusted import LINE_LIMIT, Reader

LEDGER_FORMAT = "loopwright-ledger-3"
LEDGER_LIMIT = 64 << 20  # bytes of a ledger that is read; one of ten thousand decisions has less
_LINE = Reader[dict[str, Any]](dict[str, Any], LedgerError, LINE_LIMIT)


@dataclass(frozen=True)
class LedgerContent:
    """What a ledger says: its header, an entry per decision, and how many bytes of a torn last line were left out."""

    header: dict[str, Any]
    entries: list[dict[str, Any]]
    torn: int
    last_hash: str


def read_ledger(path: Path) -> LedgerContent:
    """Read and verify a ledger.

    Raises ``LedgerError`` if it is missing, holds no header, or a line is not as it was written; the message names the
    line. A last line without its end is not an error: the process was killed while writing it.
    """
    sealed = read_sealed(path, LedgerError, limit=LEDGER_LIMIT)
    found = [_LINE.parse(line, f"{path}, line {number}") for number, line in enumerate(sealed.lines, start=1)]
    if not found or found[0].get("format") != LEDGER_FORMAT:
        raise LedgerError(f"{path} holds no header of format {LEDGER_FORMAT}")
    return LedgerContent(found[0], found[1:], sealed.torn, sealed.last_hash)


class Ledger(SealedLines):
    """Appends to one ledger: ``Ledger.create`` starts a new one, ``Ledger.resume`` goes on with what is left of one.

    Meanwhile no other process can do either.
    """

    _lock: object = None

    @classmethod
    def create(cls, path: Path, header: dict[str, Any], *, hold: bool = True) -> "Ledger":
        """A new ledger with its header. Raises ``LedgerExistsError`` if the file exists, and as ``lock_file`` does.

        Without ``hold`` nobody is kept from it: thousands of locks would exhaust open files.
        """
        lock = lock_file(path) if hold else None
        line, digest = seal({"format": LEDGER_FORMAT, **header}, GENESIS)
        if not write_new(path, line):
            raise LedgerExistsError(f"{path} exists; a ledger is never overwritten")
        ledger = cls(path, digest)
        ledger._lock = lock
        return ledger

    @classmethod
    def create_copy(cls, path: Path, content: bytes) -> "Ledger":
        """A new ledger that goes on after the ``content`` of another, without a lock. Raises as ``create`` does."""
        if not write_new(path, content):
            raise LedgerExistsError(f"{path} exists; a ledger is never overwritten")
        return cls(path, read_ledger(path).last_hash)

    @classmethod
    def resume(cls, path: Path) -> "Ledger":
        """Cut off a torn last line and go on after it. Raises as ``read_ledger`` and ``lock_file`` do."""
        read_ledger(path)  # before there is a lock beside nothing
        lock = lock_file(path)
        content = read_ledger(path)
        cut_torn_line(path, content.torn)
        ledger = cls(path, content.last_hash)
        ledger._lock = lock
        return ledger

    def keep(self, entries: int) -> None:
        """Cut off what follows the first so many entries. Raises as ``cut_file`` does."""
        lines = self.path.read_bytes().splitlines(keepends=True)[: 1 + entries]
        self._size = sum(map(len, lines))
        cut_file(self.path, self._size)
        self._last = read_sealed(self.path, LedgerError).last_hash


def read_versions() -> dict[str, str]:
    """What the numbers of a run depend on."""
    return {
        "python": platform.python_version(),
        "loopwright": version("loopwright"),
        "torch": version("torch"),
        "observation": str(OBSERVATION_VERSION),
    }


@dataclass(frozen=True)
class Author:
    """Who decides: a controller's name, the fingerprint of its policy, and the knobs it moves, where it has them."""

    name: str = "unknown"
    fingerprint: str | None = None
    knobs: str | None = None
    action: str | None = None
