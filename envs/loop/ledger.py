"""Ledger: the audit log of one run. One JSON line per decision after a header, each line sealed by a hash chain.

A line says what the controller saw, what it changed, and what came of it. It ends in the SHA-256 of its own text, which
holds the hash of the line before: a byte changed anywhere is found, and its line named. A line is appended in a single
write, so that a killed process loses at most the one it was writing; ``read_ledger`` cuts such a torn line off.
``envs.episode.recorder`` writes the ledgers of an environment's episodes, ``envs.episode.replay`` executes one again.
"""

import hashlib
import json
import math
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loopwright.envs.loop.errors import LedgerError, LedgerExistsError
from loopwright.envs.loop.holding import lock_file
from loopwright.envs.loop.observation import OBSERVATION_VERSION
from loopwright.envs.loop.storage import append_line, cut_file, in_one_line, write_new

LEDGER_FORMAT = "loopwright-ledger-3"
GENESIS = "0" * 64  # the hash before the first line
_SEAL = ',"hash":"{}"}}\n'
_SEAL_LENGTH = len(_SEAL.format(GENESIS))


def make_json_value(value: Any) -> Any:
    """Nested dicts, lists and numbers as JSON values; what JSON lacks (infinity, NaN) as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: make_json_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [make_json_value(entry) for entry in value]
    return value


def _seal(content: dict[str, Any], previous: str) -> tuple[bytes, str]:
    body = json.dumps(content | {"previous": previous}, separators=(",", ":"), allow_nan=False).encode()
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + _SEAL.format(digest).encode(), digest


def _unseal(line: bytes, previous: str) -> tuple[dict[str, Any], str] | None:
    """The content and hash of a line, newline included; None if it is not as it was written."""
    body = line[:-_SEAL_LENGTH] + b"}"
    digest = hashlib.sha256(body).hexdigest()
    if line[-_SEAL_LENGTH:] != _SEAL.format(digest).encode():
        return None
    content: dict[str, Any] = json.loads(body)
    return (content, digest) if content.pop("previous", None) == previous else None


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
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise LedgerError(f"cannot read ledger {path}: {problem.strerror}") from None
    *lines, tail = content.split(b"\n")
    found, previous = [], GENESIS
    for number, line in enumerate(lines, start=1):
        opened = _unseal(line + b"\n", previous)
        if opened is None:
            raise LedgerError(f"{path}, line {number} was changed: it does not match its hash or the line before")
        entry, previous = opened
        found.append(entry)
    if _unseal(tail[:-1] + b"\n", previous) is not None:
        raise LedgerError(f"{path}, line {len(lines) + 1} was changed: it lacks its line end")
    if not found or found[0].get("format") != LEDGER_FORMAT:
        raise LedgerError(f"{path} holds no header of format {LEDGER_FORMAT}")
    return LedgerContent(found[0], found[1:], len(tail), previous)


class Ledger:
    """Appends to one ledger: ``Ledger.create`` starts a new one, ``Ledger.resume`` goes on with what is left of one.

    No other process can meanwhile do either.
    """

    def __init__(self, path: Path, last_hash: str, size: int, lock: object) -> None:
        self.path, self._last, self._size, self._lock = path, last_hash, size, lock

    @classmethod
    def create(cls, path: Path, header: dict[str, Any], *, hold: bool = True) -> "Ledger":
        """A new ledger with its header. Raises ``LedgerExistsError`` if the file exists, and as ``lock_file`` does.

        Without ``hold`` nobody else is kept from it, for where thousands of locks would exhaust open files.
        """
        lock = lock_file(path) if hold else None
        line, digest = _seal(make_json_value({"format": LEDGER_FORMAT, **header}), GENESIS)
        if not write_new(path, line):
            raise LedgerExistsError(f"{path} exists; a ledger is never overwritten")
        return cls(path, digest, len(line), lock)

    @classmethod
    def resume(cls, path: Path) -> "Ledger":
        """Cut off a torn last line and go on after it. Raises as ``read_ledger`` and ``lock_file`` do."""
        read_ledger(path)  # before there is a lock beside nothing
        lock = lock_file(path)
        content = read_ledger(path)
        size = path.stat().st_size - content.torn
        if content.torn:
            cut_file(path, size)
        return cls(path, content.last_hash, size, lock)

    def append(self, content: dict[str, Any]) -> None:
        """Write one line, in one call, and hand it to the operating system.

        Raises as ``append_line`` does, and ``LedgerError`` where somebody else has written to the file.
        """
        line, digest = _seal(make_json_value(content), self._last)
        with in_one_line("append to", self.path):
            size = self.path.stat().st_size
        if size != self._size:
            raise LedgerError(f"{self.path} has {size} bytes, and was left with {self._size}: who else writes to it?")
        append_line(self.path, line)  # thousands of runs at once would exhaust open files
        self._last, self._size = digest, size + len(line)

    def keep(self, entries: int) -> None:
        """Cut off what follows the first so many entries. Raises as ``cut_file`` does."""
        lines = self.path.read_bytes().splitlines(keepends=True)[: 1 + entries]
        self._size = sum(map(len, lines))
        cut_file(self.path, self._size)
        self._last = json.loads(lines[-1])["hash"]


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
