"""Sealed lines: JSON lines that are only appended to, each sealed by a hash chain.

A line ends in the SHA-256 of its own text, which holds the hash of the line before: a byte changed anywhere, a line
taken out or moved is found, and the line named. It is appended in a single write, so that a killed process loses at
most the one it was writing; reading leaves such a torn line out. A chain shows damage, it does not show who wrote it:
whoever writes all of a file anew can seal it too.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.storage import append_line, cut_file
from loopwright.envs.loop.untrusted import LINE_LIMIT, opening

GENESIS = "0" * 64  # the hash before the first line
LINES_LIMIT = 512 << 20  # bytes of a file of lines
_PREVIOUS, _SEAL = ',"previous":"{}"}}', ',"hash":"{}"}}\n'


def make_json_value(value: Any) -> Any:
    """Nested dicts, lists and numbers as JSON values; what JSON lacks (infinity, NaN) as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: make_json_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [make_json_value(entry) for entry in value]
    return value


def seal(content: dict[str, Any], previous: str) -> tuple[bytes, str]:
    """The line of a ``content``, its end included, after the line of hash ``previous``; and its own hash."""
    values = make_json_value(content) | {"previous": previous}
    body = json.dumps(values, separators=(",", ":"), allow_nan=False).encode()
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + _SEAL.format(digest).encode(), digest


def unseal(line: bytes, previous: str) -> tuple[bytes, str] | None:
    """The JSON text of a line (with its end), without its seal, and its hash; None if it is not as it was written."""
    body = line[: -len(_SEAL.format(GENESIS))] + b"}"
    digest = hashlib.sha256(body).hexdigest()
    end = _PREVIOUS.format(previous).encode()
    if line[len(body) - 1 :] != _SEAL.format(digest).encode() or not body.endswith(end):
        return None
    return body[: -len(end)] + b"}", digest


@dataclass(frozen=True)
class SealedContent:
    """The JSON texts of a file's lines, how many bytes of a torn last line were left out, and the last hash."""

    lines: list[bytes]
    torn: int
    last_hash: str


def read_sealed(
    path: Path, error: type[LoopwrightError] = LoopwrightError, *, unsealed: str = "", limit: int = LINES_LIMIT
) -> SealedContent:
    """Read and verify a file of sealed lines, of at most ``limit`` bytes.

    ``unsealed`` says what it may mean that the first line carries no seal at all.

    Raises ``error`` if the file cannot be read, or a line is not as it was written; the message names the line. A last
    line without its end is not an error: the process was killed while writing it.
    """
    found, previous, number, tail = [], GENESIS, 1, b""
    with opening(path, limit, error) as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_LIMIT + 1), b""), start=1):
            if not line.endswith(b"\n") and len(line) <= LINE_LIMIT:
                tail = line
                break
            opened = unseal(line, previous)
            if opened is None and number == 1 and unsealed and b',"hash":"' not in line:
                raise error(f"{path}, line 1 carries no seal: {unsealed}")
            if opened is None:
                raise error(f"{path}, line {number} was changed: it does not match its hash or the line before")
            text, previous = opened
            found.append(text)
    if unseal(tail[:-1] + b"\n", previous) is not None:
        raise error(f"{path}, line {number} was changed: it lacks its line end")
    return SealedContent(found, len(tail), previous)


class SealedLines:
    """Appends to sealed lines after the one of hash ``last_hash``, with which the file at ``path`` ends."""

    def __init__(self, path: Path, last_hash: str = GENESIS) -> None:
        self.path, self._last, self._size = path, last_hash, path.stat().st_size

    def append(self, content: dict[str, Any]) -> None:
        """Write one line, in one call, and hand it to the operating system.

        Raises ``LoopwrightError`` as ``append_line`` does, for a line that is longer than what is read, and where
        somebody else has written to the file meanwhile.
        """
        line, digest = seal(content, self._last)
        if len(line) > LINE_LIMIT:
            raise LoopwrightError(f"cannot append to {self.path}: a line of {len(line)} bytes, of {LINE_LIMIT} at most")
        # Opened for every line: thousands of runs at once would exhaust open files.
        append_line(self.path, line, self._size)
        self._last, self._size = digest, self._size + len(line)


def seal_all(contents: Iterable[dict[str, Any]]) -> tuple[bytes, str]:
    """Lines of these contents from the first on, and the last hash."""
    lines, last = [], GENESIS
    for content in contents:
        line, last = seal(content, last)
        lines.append(line)
    return b"".join(lines), last


def cut_torn_line(path: Path, torn: int) -> None:
    """Take ``torn`` bytes off the end of a file: a process was killed while it wrote them."""
    if torn:
        cut_file(path, path.stat().st_size - torn)
