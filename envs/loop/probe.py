"""Probe: measures the updates of one run, on whatever tensors it keeps its parameters in."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from loopwright.envs.loop.averages import Floats
from loopwright.envs.loop.telemetry import PROBE, WINDOW

MOST = 2**13  # numbers of each vector that are looked at, or little more: of larger models, some rows stand for all
_KEPT = "MWSG"  # the rows of an update: before the first of them lies G of the update before, which is its P
_READ = "P" + _KEPT
_FROM = [_READ.index(pair[0]) * len(_READ) + _READ.index(pair[1]) for pair in PROBE[2:]]
PAIRED = PROBE.index("PP")  # from here on, what an update has that another lies before


class Sample:
    """Which numbers of tensors a probe looks at.

    Attributes:
        size: how many they are.
        stand: how many each of them stands for, ``[size]``: the products of all are estimated by those of the ones
            looked at. None where it looks at all.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], most: int | None) -> None:
        stride = 1 if most is None else max(1, -(-sum(p.numel() for p in parameters) // most))
        # A tensor's own rows: they are contiguous, and alike. Of those with few rows, all of them.
        self._strides = [min(stride, len(p)) if p.dim() > 1 else 1 for p in parameters]
        taken = [p[::own] if own > 1 else p for p, own in zip(parameters, self._strides, strict=True)]
        self._shapes, self._sizes = [t.shape for t in taken], [t.numel() for t in taken]
        self.size = sum(self._sizes)
        stand = [torch.full((n,), p.numel() / n) for p, n in zip(parameters, self._sizes, strict=True)]
        self.stand = torch.cat(stand) if stride > 1 else None

    def split_up(self, vectors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Views of vectors ``[size]``, one after the other: the parts of each, in the shapes that ``take`` gives."""
        return [
            part.view(shape)
            for vector in vectors
            for part, shape in zip(torch.split(vector, self._sizes), self._shapes, strict=True)
        ]

    def take(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """What is looked at of so many times the parameters' tensors, one after the other."""
        if self.stand is None:
            return tensors
        strides = self._strides * (len(tensors) // len(self._strides))
        return [t[::own] if own > 1 else t for t, own in zip(tensors, strides, strict=True)]


class Probe:
    """Takes the products of ``telemetry.PROBE`` of successive updates, of the last ``WINDOW`` of them.

    An update costs one copy of what is looked at. What is made of it waits until it is read: small operations cost a
    small loop more than the arithmetic in them.

    Args:
        parameters: tensors of the shapes and the device of the run's parameters.
        most: how many numbers of a vector to look at; None for all. It keeps seventeen vectors of so many, within a
            window.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], most: int | None = MOST) -> None:
        self._sample, like = Sample(parameters, most), parameters[0]
        dtype = torch.promote_types(like.dtype, torch.float32)
        size, stand = self._sample.size, self._sample.stand
        self._rows = torch.zeros(1 + WINDOW * len(_KEPT), size, device=like.device, dtype=dtype)
        self._updates = self._rows[1:].view(WINDOW, len(_KEPT), -1)
        self._slots = [self._sample.split_up(update[_KEPT.index(row)] for row in "MWG") for update in self._updates]
        self._scale = None if stand is None else stand.sqrt().to(self._rows)
        self._count = 0

    def begin(self) -> None:
        """Start a window: what was measured before is forgotten, and until it is measured again there is no memory."""
        self._count = 0
        self._rows.untyped_storage().resize_(0)

    @torch.no_grad()
    def measure(
        self, gradients: Sequence[torch.Tensor], momenta: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
    ) -> None:
        """Take in the next update just before it is made; each argument has the shapes of the parameters."""
        if self._count == 0:
            self._allocate()
        elif self._count == WINDOW:
            self._updates[:-1] = self._updates[1:].clone()
            self._count -= 1
        torch._foreach_copy_(self._slots[self._count], self._sample.take([*momenta, *weights, *gradients]))
        self._count += 1

    def _allocate(self) -> None:
        """Have memory, which all views of the vectors share."""
        self._rows.untyped_storage().resize_(self._rows.numel() * self._rows.element_size())

    def state_dict(self) -> dict[str, Any]:
        """What was measured in the present window."""
        return {"updates": self._updates[: self._count].clone() if self._count else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``; from one of ``CompiledProbe``, with a window anew."""
        self.begin()
        if state.get("updates") is not None:
            self._allocate()
            self._count = len(state["updates"])
            self._updates[: self._count] = state["updates"]

    @torch.no_grad()
    def read(self) -> Floats:
        """What was measured since ``begin``: ``[updates, len(PROBE), 1]``."""
        count = self._count
        window = np.zeros((count, len(PROBE), 1), np.float32)
        if count == 0:
            return window
        rows, found = self._rows[: 1 + count * len(_KEPT)], window[:, :, 0]
        if self._scale is not None:
            rows = rows * self._scale
        weights, moves = (rows[_READ.index(vector) :: len(_KEPT)] for vector in "WS")
        torch.sub(weights[1:], weights[:-1], out=moves[1:])
        size = rows.shape[1]
        overlapping = rows.as_strided((count, len(_READ), size), (len(_KEPT) * size, size, 1))
        products = torch.bmm(overlapping, overlapping.mT).cpu().numpy().reshape(count, -1)[:, _FROM]
        products[0, PAIRED - 2 :] = 0.0  # what lies there was never written
        found[:, 0], found[1:, 1], found[:, 2:] = 1.0, 1.0, products
        return window
