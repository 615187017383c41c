"""Probe: measures the updates of one run, on whatever tensors it keeps its parameters in."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from loopwright.envs.loop.averages import Floats
from loopwright.envs.loop.telemetry import PROBE

MOST = 2**14  # numbers of each vector that are looked at, or little more: of larger models, some rows stand for all
_VECTORS = "GMWPS"
_PRODUCTS = [(_VECTORS.index(pair[0]), _VECTORS.index(pair[1])) for pair in PROBE[2:]]
_ROWS, _COLUMNS = (list(side) for side in zip(*_PRODUCTS, strict=True))


class Probe:
    """Takes the products of ``telemetry.PROBE`` of successive updates.

    Args:
        parameters: tensors of the shapes and the device of the run's parameters.
        most: how many numbers of a vector to look at; None for all. It keeps five vectors of so many, within a window.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], most: int | None = MOST) -> None:
        total, like = sum(p.numel() for p in parameters), parameters[0]
        stride = 1 if most is None else max(1, -(-total // most))
        # A tensor's own rows: they are contiguous, and alike. Of those with few rows, all of them.
        self._strides = [min(stride, len(p)) if p.dim() > 1 else 1 for p in parameters]
        taken = [p[::own] if own > 1 else p for p, own in zip(parameters, self._strides, strict=True)]
        sizes = [t.numel() for t in taken]
        dtype = torch.promote_types(like.dtype, torch.float32)
        self._vectors = v = torch.zeros(len(_VECTORS), sum(sizes), device=like.device, dtype=dtype)
        self._slots = [part.view(t.shape) for row in v[:3] for part, t in zip(row.split(sizes), taken, strict=True)]
        # Each number stands for so many: the products of all are estimated by those of the ones looked at.
        stand = [torch.full((n,), (p.numel() / n) ** 0.5) for p, n in zip(parameters, sizes, strict=True)]
        self._scale = torch.cat(stand).to(v) if stride > 1 else None
        self._alone, self._both = (v[:3], v[:3].T), (v, v.T)
        self._products: list[torch.Tensor] = []

    def begin(self) -> None:
        """Start a window: what was measured before is forgotten, and until it is measured again there is no memory."""
        self._products.clear()
        self._vectors.untyped_storage().resize_(0)

    def measure(
        self, gradients: Sequence[torch.Tensor], momenta: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
    ) -> None:
        """Take in the next update just before it is made; each argument has the shapes of the parameters."""
        v, scale, before = self._vectors, self._scale, bool(self._products)
        if not before:
            self._allocate()
        found = [*gradients, *momenta, *weights]
        if scale is not None:
            found = [t[::own] if own > 1 else t for t, own in zip(found, 3 * self._strides, strict=True)]
        with torch.no_grad():
            if before:
                v[3].copy_(v[0])
                v[4].copy_(v[2])
            torch._foreach_copy_(self._slots, found)
            if scale is not None:
                v[:3].mul_(scale)
            if before:
                torch.sub(v[2], v[4], out=v[4])
            rows, columns = self._both if before else self._alone
            products = torch.mm(rows, columns)
        self._products.append(products)

    def _allocate(self) -> None:
        """Have memory, which all views of the vectors share."""
        self._vectors.untyped_storage().resize_(self._vectors.numel() * self._vectors.element_size())

    def state_dict(self) -> dict[str, Any]:
        """What was measured in the present window."""
        vectors = self._vectors.clone() if self._products else None
        return {"vectors": vectors, "products": [p.clone() for p in self._products]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begin()
        self._products = list(state["products"])
        if self._products:
            self._allocate()
            self._vectors.copy_(state["vectors"])

    def read(self) -> Floats:
        """What was measured since ``begin``: ``[updates, len(PROBE), 1]``."""
        window = np.zeros((len(self._products), len(PROBE), 1), np.float32)
        for row, products in zip(window, self._products, strict=True):
            gram = products.cpu().numpy()
            paired = len(gram) == len(_VECTORS)
            row[:2, 0] = 1.0, paired
            if paired:
                row[2:, 0] = gram[_ROWS, _COLUMNS]
            else:
                row[2:6, 0] = gram[_ROWS[:4], _COLUMNS[:4]]
        return window
