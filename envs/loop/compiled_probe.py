"""CompiledProbe: ``Probe`` of a run on the CPU, whose products are taken by a C function."""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from loopwright.envs.loop.averages import Floats
from loopwright.envs.loop.compiled import load_c
from loopwright.envs.loop.probe import MOST, PAIRED, Probe, Sample
from loopwright.envs.loop.telemetry import PROBE, WINDOW

_SOURCE = Path(__file__).with_name("probe.c")
_ABOUT_THE_LAST = [PROBE.index("paired"), *range(PAIRED, len(PROBE))]
_VECTORS = 3  # of an update that are kept: momentum, weights and gradient


def make_probe(parameters: Sequence[torch.Tensor], most: int | None = MOST) -> "Probe | CompiledProbe":
    """A probe for a run with such parameters: compiled where they are float32 on the CPU, and there is a C compiler."""
    fits = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters)
    return CompiledProbe(parameters, most) if fits and _load() is not None else Probe(parameters, most)


class CompiledProbe:
    """What ``Probe`` takes of float32 tensors on the CPU, to rounding, update by update.

    It keeps six vectors of what is looked at, within a window. Arguments as those of ``Probe``.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], most: int | None = MOST) -> None:
        self._sample = Sample(parameters, most)
        self._kept = torch.zeros(2, _VECTORS, self._sample.size)  # of this update and of the one before, by turns
        self._slots = [self._sample.split_up(own) for own in self._kept]
        self._storage = self._kept.untyped_storage()
        self._window = torch.zeros(WINDOW, len(PROBE), 1)
        self._rows = [row.data_ptr() for row in self._window]
        self._stand = None if self._sample.stand is None else self._sample.stand.data_ptr()
        self._count = self._turn = 0  # updates in it, and which vectors are those of the next

    def begin(self) -> None:
        """Start a window: what was measured before is forgotten, and until it is measured again there is no memory."""
        self._count = self._turn = 0
        self._storage.resize_(0)

    def measure(
        self, gradients: Sequence[torch.Tensor], momenta: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
    ) -> None:
        """Take in the next update just before it is made; each argument has the shapes of the parameters.

        To be called where gradients are off.
        """
        if self._count == 0:
            self._allocate()
        elif self._count == WINDOW:
            self._window[:-1] = self._window[1:].clone()
            self._window[0, _ABOUT_THE_LAST] = 0.0
            self._count -= 1
        torch._foreach_copy_(self._slots[self._turn], self._sample.take([*momenta, *weights, *gradients]))
        this, last = self._places[self._turn], self._places[1 - self._turn] if self._count else None
        _load().probe(this, last, self._sample.size, self._stand, self._rows[self._count])
        self._count, self._turn = self._count + 1, 1 - self._turn

    def _allocate(self) -> None:
        """Have memory, which all views of the vectors share."""
        self._storage.resize_(self._kept.nbytes)
        first = self._storage.data_ptr()
        self._places = (first, first + self._kept.nbytes // 2)

    def read(self) -> Floats:
        """What was measured since ``begin``: ``[updates, len(PROBE), 1]``."""
        return self._window.numpy()[: self._count].copy()

    def state_dict(self) -> dict[str, Any]:
        """What was measured in the present window."""
        if not self._count:
            return {"count": 0}
        return {"count": self._count, "window": self._window.clone(), "kept": self._kept[1 - self._turn].clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``; from one of ``Probe``, with a window anew."""
        self.begin()
        self._count = state.get("count", 0)
        if self._count:
            self._allocate()
            self._window.copy_(state["window"])
            self._kept[1] = state["kept"]


@lru_cache
def _load() -> Any:
    """The functions of the source; None without a compiler."""
    library = load_c(_SOURCE.read_text())
    if library is not None:
        at = ctypes.c_void_p
        library.probe.argtypes = [at, at, ctypes.c_long, at, at]
    return library
