"""Ledger: the audit log of one run. One JSON line per decision after a header, each line sealed by a hash chain.

A line says what the controller saw, what it changed, and what came of it. It ends in the SHA-256 of its own text, which
holds the hash of the line before: a byte changed anywhere is found, and its line named. A line is appended in a single
write, so that a killed process loses at most the one it was writing; ``read_ledger`` cuts such a torn line off.
``envs.episode.recorder`` writes the ledgers of an environment's episodes, ``envs.episode.replay`` executes one again.
"""

import hashlib
import json
import math
import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loopwright.envs.loop.errors import LedgerError, LedgerExistsError
from loopwright.envs.loop.observation import OBSERVATION_VERSION
from loopwright.envs.loop.storage import append_line

LEDGER_FORMAT = "loopwright-ledger-3"
GENESIS = "0" * 64  # the hash before the first line
MOST_BYTES = 64 * 2**20  # of a ledger that is read; one of ten thousand decisions has less
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
    """The content and hash of a line, newline included; None if it is not as it was written.

    Raises ``ValueError`` for one that is sealed, but no JSON object: somebody else has written it.
    """
    if not _is_sealed(line):
        return None
    body = line[:-_SEAL_LENGTH] + b"}"
    try:
        content = json.loads(body, object_pairs_hook=_intern)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("it is a list")
    return (content, hashlib.sha256(body).hexdigest()) if content.pop("previous", None) == previous else None


def _intern(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Every line has the same keys: they are kept in memory once."""
    return {sys.intern(key): value for key, value in pairs}


@dataclass(frozen=True)
class LedgerContent:
    """What a ledger says: its header, an entry per decision, and how many bytes of a torn last line were left out."""

    header: dict[str, Any]
    entries: list[dict[str, Any]]
    torn: int
    last_hash: str


def read_ledger(path: Path) -> LedgerContent:
    """Read and verify a ledger: that its lines are as they were written, not what they say (``episode.ledger_fields``).

    Raises ``LedgerError`` if it is missing, larger than ``MOST_BYTES``, holds no header, or a line is not as it was
    written; the message names the line. A last line without its end is not an error: the process was killed while
    writing it.
    """
    *lines, tail = _read_bytes(path).split(b"\n")
    found: list[dict[str, Any]] = []
    previous = GENESIS
    for number, line in enumerate(lines, start=1):
        try:
            opened = _unseal(line + b"\n", previous)
        except ValueError as problem:
            raise LedgerError(f"{path}, line {number} holds no JSON object: {problem}") from None
        if opened is None:
            raise LedgerError(f"{path}, line {number} was changed: it does not match its hash or the line before")
        entry, previous = opened
        found.append(entry)
    if _is_sealed(tail[:-1] + b"\n"):
        raise LedgerError(f"{path}, line {len(lines) + 1} was changed: it lacks its line end")
    if not found or found[0].get("format") != LEDGER_FORMAT:
        raise LedgerError(f"{path} holds no header of format {LEDGER_FORMAT}")
    return LedgerContent(found[0], found[1:], len(tail), previous)


def _is_sealed(line: bytes) -> bool:
    digest = hashlib.sha256(line[:-_SEAL_LENGTH] + b"}").hexdigest()
    return line[-_SEAL_LENGTH:] == _SEAL.format(digest).encode()


def _read_bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise LedgerError(f"cannot read ledger {path}: it is not a file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as problem:
        raise LedgerError(f"cannot read ledger {path}: {problem.strerror}") from None
    if len(content) > MOST_BYTES:
        raise LedgerError(f"cannot read ledger {path}: it is larger than {MOST_BYTES} bytes")
    return content


class Ledger:
    """Appends to one ledger: ``Ledger.create`` starts a new one, ``Ledger.resume`` goes on with what is left of one."""

    def __init__(self, path: Path, last_hash: str) -> None:
        self.path, self._last = path, last_hash

    @classmethod
    def create(cls, path: Path, header: dict[str, Any]) -> "Ledger":
        """A new ledger with its header. Raises ``LedgerExistsError`` if there is one, else ``LedgerError``."""
        line, digest = _seal(make_json_value({"format": LEDGER_FORMAT, **header}), GENESIS)
        # Under another name first: whoever kills us leaves no ledger or one with its header.
        begun = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                begun.write_bytes(line)
                os.link(begun, path)
            except FileExistsError:
                raise LedgerExistsError(f"{path} exists; a ledger is never overwritten") from None
            finally:
                begun.unlink(missing_ok=True)
        except OSError as problem:
            raise LedgerError(f"cannot write {path}: {problem.strerror}") from problem
        return cls(path, digest)

    @classmethod
    def resume(cls, path: Path) -> "Ledger":
        """Cut off a torn last line and go on after it. Raises ``LedgerError`` as ``read_ledger`` does."""
        content = read_ledger(path)
        if content.torn:
            os.truncate(path, path.stat().st_size - content.torn)
        return cls(path, content.last_hash)

    def append(self, content: dict[str, Any]) -> None:
        """Write one line, in one call, and hand it to the operating system. Raises as ``append_line`` does."""
        line, digest = _seal(make_json_value(content), self._last)
        append_line(self.path, line)  # thousands of runs at once would exhaust open files
        self._last = digest


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
