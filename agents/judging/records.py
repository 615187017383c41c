"""Records on disk: a header that says what they belong to, and one record a line, sealed and only ever appended to.

A process that is killed loses at most the line it was writing; opening cuts a half-written line off, and who goes on
skips the records that are there. Methods may be added to a header later: it then stands there once more, with them.
"""

import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.sealed import (
    GENESIS,
    SealedContent,
    SealedLines,
    cut_torn_line,
    make_json_value,
    read_sealed,
    seal_all,
)
from loopwright.envs.loop.storage import write_whole
from loopwright.envs.loop.untrusted import LINE_LIMIT, Reader

Header = dict[str, Any]
_HEADER = b'{"format":'


class Record(Protocol):
    """What can be kept: it has a key, of which there is only one, and can be written as JSON values."""

    @property
    def key(self) -> Hashable: ...

    def as_json(self) -> dict[str, Any]: ...


R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class RecordKind(Generic[R]):
    """What one kind of file holds.

    Attributes:
        what: what the records are called.
        format: the name of the format, which the header begins with.
        header, record: the types they are read as, headers a TypedDict with ``format`` first.
        check: raises ``ValueError`` for a record that cannot belong to its header.
        again: what to do about a file of an older version.
    """

    what: str
    format: str
    header: Any
    record: Any
    check: Callable[[Header, R], None]
    again: str

    def read_header(self, text: bytes, where: str) -> Header:
        header = Reader[Header](self.header, limit=LINE_LIMIT).parse(text, where)
        if header["format"] != self.format:
            raise LoopwrightError(f"{where}: format {header['format']!r}; this version reads {self.format!r}")
        return header


def read_records(path: Path, kind: RecordKind[R]) -> tuple[Header, list[R]]:
    """Header and records, without a last line that was not finished. Raises ``LoopwrightError`` for any other file."""
    if not path.exists():
        raise LoopwrightError(f"no {kind.what} at {path}")
    header, records, _ = _read(path, kind)
    if not header:
        raise LoopwrightError(f"{path} holds no header of format {kind.format}")
    return header, records


def _read(path: Path, kind: RecordKind[R]) -> tuple[Header, list[R], SealedContent]:
    sealed = read_sealed(path, unsealed=f"an older version wrote it, or it was altered; move it away and {kind.again}")
    reader = Reader[R](kind.record, limit=LINE_LIMIT)
    header: Header = {}
    records: dict[Hashable, R] = {}
    for number, line in enumerate(sealed.lines, start=1):
        where = f"{path}, line {number}"
        if number == 1 or line.startswith(_HEADER):
            before, header = header, kind.read_header(line, where)
            if before and (differs := _find_differences(before, header)):
                raise LoopwrightError(f"{where}: another header than the one before ({', '.join(differs)} differ)")
            continue
        record = reader.parse(line, where)
        try:
            kind.check(header, record)
        except ValueError as problem:
            raise LoopwrightError(f"{where}: {problem}") from None
        if record.key in records:
            raise LoopwrightError(f"{where}: the run {record.key} is counted twice")
        records[record.key] = record
    return header, list(records.values()), sealed


def _find_differences(found: Mapping[str, Any], header: Mapping[str, Any]) -> list[str]:
    """What two headers differ in: entries, or methods of which neither list of fingerprints begins with the other."""
    differs = sorted(name for name in {*found, *header} - {"methods"} if found.get(name) != header.get(name))
    known, methods = found.get("methods", {}), header.get("methods", {})
    return differs + [
        name for name in methods if any(a != b for a, b in zip(methods[name], known.get(name, []), strict=False))
    ]


def _merge(found: Header, header: Header) -> Header:
    if "methods" not in header:
        return header
    known, own = found.get("methods", {}), header["methods"]
    both = {name: max(known.get(name, []), own.get(name, []), key=len) for name in {**known, **own}}
    return header | {"methods": both}


class RecordsFile(Generic[R]):
    """The records of one kind on disk. Opening creates the file, or reads it and cuts off a line that was not finished.

    Raises ``LoopwrightError`` where the file belongs to something else (an entry of its header, or a method's
    fingerprints, differ), is damaged before its end, counts a run twice, or holds what cannot be.
    """

    def __init__(self, path: Path, kind: RecordKind[R], header: Header) -> None:
        self.path, self._kind = path, kind
        text = json.dumps(make_json_value({"format": kind.format, **header})).encode()
        wanted = kind.read_header(text, f"the header of {path}")
        found: Header = {}
        self.records: list[R] = []
        sealed = SealedContent([], 0, GENESIS)
        if path.exists():
            found, self.records, sealed = _read(path, kind)
            differs = _find_differences(found, wanted) if found else []
            if differs:
                raise LoopwrightError(
                    f"{path} holds the {kind.what} of another evaluation ({', '.join(differs)} differ); "
                    f"choose another folder"
                )
            cut_torn_line(path, sealed.torn)
        else:
            write_whole(path, b"")
        self.done: set[Any] = {record.key for record in self.records}
        self._lines = SealedLines(path, sealed.last_hash)
        self.header = _merge(found, wanted)
        if self.header != found:
            self._lines.append(self.header)

    def append(self, record: R) -> None:
        """Keep a record. Raises ``LoopwrightError`` for a run that is there already."""
        if record.key in self.done:
            raise LoopwrightError(f"{self.path} already holds the run {record.key}")
        self._lines.append(record.as_json())
        self.records.append(record)  # first: whoever sees the key, from another thread, finds the record
        self.done.add(record.key)

    def rewrite(self, records: list[R]) -> None:
        """Keep these records in place of those that are there."""
        content, last = seal_all([self.header, *(record.as_json() for record in records)])
        write_whole(self.path, content)
        self._lines = SealedLines(self.path, last)
        self.records, self.done = records, {record.key for record in records}
