"""CompiledNetwork: a policy's network for one run as C functions: numpy takes longer to be called."""

import ctypes
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from loopwright.envs.loop.averages import Floats
from loopwright.envs.loop.compiled import load_c

_SOURCE = Path(__file__).with_name("network.c")


class CompiledNetwork:
    """The steps of some knobs for one observation, by linear layers with tanh between them and discrete actions.

    To be made where ``is_possible`` says so. The weights are copies.

    Args:
        layers: those, first layer first.
        sizes: of each knob the steps to choose from: as many as there are outputs, in all.
        whole: of each knob whether the most probable one is taken, not the mean.
    """

    def __init__(self, layers: Sequence[nn.Linear], sizes: Sequence[Sequence[float]], whole: Sequence[bool]) -> None:
        self._made_of, self._lock = (layers, sizes, whole), Lock()
        weights = [layer.weight.detach().numpy().T for layer in layers]
        biases = [layer.bias.detach().numpy() for layer in layers]
        widths = [len(weights[0]), *map(len, biases)]
        self._seen = _join([widths[0] * [0]], np.float32)
        self._steps = _join([len(sizes) * [0]], np.float32)
        hidden = _join([width * [0] for width in widths[1:]], np.float32)
        parameters = _join([part for pair in zip(biases, weights, strict=True) for part in pair], np.float32)
        spans = _join(map(_find_spans, weights), np.int32)
        choices = [len(own) for own in sizes]
        self._network = (
            self._seen, len(layers), _join([widths], np.int32), parameters, spans, hidden,
        )  # fmt: skip
        self._head = (
            hidden[-widths[-1] :], len(sizes), _join([choices], np.int32), _join([whole], np.int32),
            _join(sizes, np.float32), self._steps,
        )  # fmt: skip
        self._calls = [
            (function, [ctypes.c_void_p(own.ctypes.data) if isinstance(own, np.ndarray) else own for own in arguments])
            for function, arguments in zip(_load(), (self._network, self._head), strict=True)
        ]

    def __reduce__(self) -> tuple[type["CompiledNetwork"], tuple[Any, ...]]:
        return CompiledNetwork, self._made_of

    def __call__(self, observation: Floats) -> list[float]:
        """A step for each knob, of one observation ``[features]``."""
        with self._lock:  # several loops, in threads, may be steered by one policy
            self._seen[:] = observation
            for function, arguments in self._calls:
                function(*arguments)
            steps: list[float] = self._steps.tolist()
        return steps


def is_possible() -> bool:
    """Whether there is a C compiler to make one with."""
    return bool(_load())


@lru_cache
def _load() -> list[Any]:
    """The functions, in the order of their calls; none without a compiler."""
    library = load_c(_SOURCE.read_text())
    return [] if library is None else [library.run_network, library.find_steps]


def _join(parts: Iterable[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate([np.ravel(part) for part in parts]).astype(dtype)


def _find_spans(weights: Floats) -> list[int]:
    """Of each input's row the first column that is not zero, and the one after the last."""
    found: list[int] = []
    for row in weights:
        used = np.flatnonzero(row)
        found += [int(used[0]), int(used[-1]) + 1] if len(used) else [0, 0]
    return found
