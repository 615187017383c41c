"""Probe: measures the updates of one run, on whatever tensors it keeps its parameters in."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from loopwright.envs.loop.averages import Floats
from loopwright.envs.loop.telemetry import PROBE, WINDOW

MOST = 2**13  # numbers of each vector that are looked at, or little more: of larger models, some rows stand for all
_ROWS = "GMWS"  # what is kept of an update
# The products of those with one another, and where they belong; GP and PS are with the update before, PP is its GG.
_OWN = [pair for pair in PROBE[2:] if "P" not in pair]
_OWN_FROM = [_ROWS.index(pair[0]) * len(_ROWS) + _ROWS.index(pair[1]) for pair in _OWN]
_OWN_TO = [PROBE.index(pair) for pair in _OWN]
_BEFORE_TO = [PROBE.index(pair) for pair in ("GP", "PS")]
_GG, _PP = PROBE.index("GG"), PROBE.index("PP")


class Probe:
    """Takes the products of ``telemetry.PROBE`` of successive updates, of the last ``WINDOW`` of them.

    An update costs one copy of what is looked at. What is made of it waits until it is read: small operations cost a
    small loop more than the arithmetic in them.

    Args:
        parameters: tensors of the shapes and the device of the run's parameters.
        most: how many numbers of a vector to look at; None for all. It keeps fifteen vectors of so many, within a
            window.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], most: int | None = MOST) -> None:
        total, like = sum(p.numel() for p in parameters), parameters[0]
        stride = 1 if most is None else max(1, -(-total // most))
        # A tensor's own rows: they are contiguous, and alike. Of those with few rows, all of them.
        self._strides = [min(stride, len(p)) if p.dim() > 1 else 1 for p in parameters]
        taken = [p[::own] if own > 1 else p for p, own in zip(parameters, self._strides, strict=True)]
        sizes = [t.numel() for t in taken]
        dtype = torch.promote_types(like.dtype, torch.float32)
        self._updates = torch.zeros(WINDOW, len(_ROWS), sum(sizes), device=like.device, dtype=dtype)
        self._slots = [
            [part.view(t.shape) for row in update[:3] for part, t in zip(row.split(sizes), taken, strict=True)]
            for update in self._updates
        ]
        # Each number stands for so many: the products of all are estimated by those of the ones looked at.
        stand = [torch.full((n,), (p.numel() / n) ** 0.5) for p, n in zip(parameters, sizes, strict=True)]
        self._scale = torch.cat(stand).to(self._updates) if stride > 1 else None
        self._count = 0

    def begin(self) -> None:
        """Start a window: what was measured before is forgotten, and until it is measured again there is no memory."""
        self._count = 0
        self._updates.untyped_storage().resize_(0)

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
        found = [*gradients, *momenta, *weights]
        if self._scale is not None:
            found = [t[::own] if own > 1 else t for t, own in zip(found, 3 * self._strides, strict=True)]
        torch._foreach_copy_(self._slots[self._count], found)
        self._count += 1

    def _allocate(self) -> None:
        """Have memory, which all views of the vectors share."""
        self._updates.untyped_storage().resize_(self._updates.numel() * self._updates.element_size())

    def state_dict(self) -> dict[str, Any]:
        """What was measured in the present window."""
        return {"updates": self._updates[: self._count].clone() if self._count else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begin()
        if state["updates"] is not None:
            self._allocate()
            self._count = len(state["updates"])
            self._updates[: self._count] = state["updates"]

    @torch.no_grad()
    def read(self) -> Floats:
        """What was measured since ``begin``: ``[updates, len(PROBE), 1]``."""
        window = np.zeros((self._count, len(PROBE), 1), np.float32)
        if self._count == 0:
            return window
        rows, found = self._updates[: self._count], window[:, :, 0]
        if self._scale is not None:
            rows = rows * self._scale
        rows[0, 3] = 0.0
        torch.sub(rows[1:, 2], rows[:-1, 2], out=rows[1:, 3])
        own, before = torch.bmm(rows, rows.mT).flatten(1), torch.linalg.vecdot(rows[:-1, :1], rows[1:, ::3])
        found[:, 0], found[1:, 1] = 1.0, 1.0
        found[:, _OWN_TO] = own.cpu().numpy()[:, _OWN_FROM]
        found[1:, _PP] = found[:-1, _GG]
        found[1:, _BEFORE_TO] = before.cpu().numpy()
        return window
