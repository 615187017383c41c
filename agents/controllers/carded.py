"""Tensors and a JSON card in one safetensors file, with the SHA-256 of both on the card: bundles and checkpoints.

Reading one executes nothing. What the file says of itself is checked before anything is made of it: the header's
length, the card, the names, dtypes and shapes of the tensors, and the file's length; then its SHA-256.
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from typing_extensions import TypedDict

from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.storage import writing
from loopwright.envs.loop.untrusted import JSON_LIMIT, Count, Reader, read_limited, strict

DTYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "U8": torch.uint8}

Card = TypeVar("Card", bound=Mapping[str, Any])
TensorLayout = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # dtype and shape of each tensor


@strict
class _Tensor(TypedDict):
    dtype: str
    shape: Annotated[list[Count], Field(max_length=8)]
    data_offsets: Annotated[list[Count], Field(min_length=2, max_length=2)]


@strict
class _Metadata(TypedDict):
    card: str


class CardedFile(Generic[Card]):
    """Reads and writes one kind of such a file.

    Args:
        what: what messages call it.
        card: the type of its card, whose ``sha256`` is added here.
        limit: bytes that such a file may have.
        error: what is raised.
    """

    def __init__(self, what: str, card: Any, limit: int, error: type[LoopwrightError]) -> None:
        self.what, self.limit, self.error = what, limit, error
        self._card = Reader[Card](card, error)
        self._header = Reader[dict[str, Any]](dict[str, Any], error)
        self._metadata, self._tensor = Reader[_Metadata](_Metadata, error), Reader[_Tensor](_Tensor, error)

    def write(self, path: Path, card: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Write a file, whole or not at all. Raises ``error`` where that fails."""
        try:
            text = json.dumps({**card, "sha256": compute_digest(card, tensors)}, allow_nan=False)
        except (ValueError, TypeError) as problem:
            raise self.error(f"cannot write {path}: its card is not JSON: {problem}") from None
        with writing(path) as beside:
            try:
                save_file(tensors, beside, metadata={"card": text})
            except SafetensorError as problem:
                raise self.error(f"cannot write {path}: {problem}") from problem
            size = Path(beside).stat().st_size
            if size > self.limit:
                raise self.error(f"cannot write {path}: {size} bytes, and at most {self.limit} would be read again")

    def read(self, path: Path, check: Callable[[Card, TensorLayout], None]) -> tuple[Card, dict[str, torch.Tensor]]:
        """Card and tensors. Raises ``error`` for a file that is damaged, altered, or does not fit together.

        ``check`` is given the card and how the tensors are laid out before any of them is made, and raises
        ``ValueError`` for what it does not accept.
        """
        where = f"{path} is not a readable {self.what}"
        begin = read_limited(path, 8 + JSON_LIMIT, self.error, whole=False)
        (length,) = struct.unpack("<Q", begin[:8]) if len(begin) >= 8 else (0,)
        if not 0 < length <= len(begin) - 8:
            raise self.error(f"{where}: a header of {length} bytes, of at most {min(JSON_LIMIT, len(begin))}")
        card, layout = self._read_header(begin[8 : 8 + length], where)
        try:
            check(card, layout)
        except ValueError as problem:
            raise self.error(f"{path}: the card and the weights do not fit together: {problem}") from None
        size = 8 + length + sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout.values())
        content = read_limited(path, min(size, self.limit), self.error)
        if len(content) != size:
            raise self.error(f"{where}: {len(content)} bytes, where its header speaks of {size}")
        try:
            tensors: dict[str, torch.Tensor] = load(content)
        except (SafetensorError, ValueError, RuntimeError) as problem:
            raise self.error(f"{where}: {problem}") from None
        if card["sha256"] != compute_digest(card, tensors):
            raise self.error(f"{path} was altered: its SHA-256 does not match the one on its card")
        return card, tensors

    def _read_header(self, text: bytes, where: str) -> tuple[Card, TensorLayout]:
        entries = self._header.parse(text, f"{where}: header")
        metadata = self._metadata.check(entries.pop("__metadata__", None), f"{where}: header")
        layout: TensorLayout = {}
        for name, values in entries.items():
            entry = self._tensor.check(values, f"{where}: header, {name!a}")
            if entry["dtype"] not in DTYPES:
                raise self.error(f"{where}: header, {name!a}: dtype must be one of {', '.join(DTYPES)}")
            layout[name] = DTYPES[entry["dtype"]], tuple(entry["shape"])
        return self._card.parse(metadata["card"].encode(), f"{where}: card"), layout


def require_layout(found: TensorLayout, expected: TensorLayout) -> None:
    """Raise ``ValueError`` unless the tensors are those expected."""
    for name in sorted({*found, *expected}, key=ascii):
        if found.get(name) != expected.get(name):
            raise ValueError(f"{name!a} is {_say(found.get(name))}, where {_say(expected.get(name))} is expected")


def _say(entry: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    return "nothing" if entry is None else f"{str(entry[0]).removeprefix('torch.')} {list(entry[1])}"


def compute_digest(card: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a card, but for the hash on it, and of tensors."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in card.items() if k != "sha256"}, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
