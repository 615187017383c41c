"""The averaged copy of the weights that a plan's ``average`` asks for."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """An exponential average of parameters, by torch's own, and of such ``buffers`` as go with them.

    The statistics of batch norm are those of the weights as they were: an average of weights fits an average of these.
    """

    def __init__(self, buffers: Iterable[torch.Tensor] = ()) -> None:
        self._buffers = [buffer for buffer in buffers if buffer.is_floating_point()]
        self.weights: list[torch.Tensor] = []  # the parameters', and then the buffers'

    @torch.no_grad()
    def update(self, parameters: Sequence[torch.Tensor], half_life: float) -> None:
        """Take in the weights after an update; half of the average is forgotten every ``half_life`` updates."""
        parameters = [*parameters, *self._buffers]
        if half_life <= 0:
            self.weights = []
        elif [p.shape for p in parameters] != [w.shape for w in self.weights]:
            self.weights = [p.detach().clone() for p in parameters]
        else:
            _make_average(half_life)(self.weights, parameters, 1)

    @contextmanager
    def applied(self, parameters: Sequence[torch.Tensor]) -> Iterator[None]:
        """Within it the parameters are the average, where there is one."""
        if not self.weights:
            yield
            return
        self._swap(parameters)
        try:
            yield
        finally:
            self._swap(parameters)

    @torch.no_grad()
    def _swap(self, parameters: Sequence[torch.Tensor]) -> None:
        for p, weight in zip([*parameters, *self._buffers], self.weights, strict=True):
            held = p.detach().clone()
            p.copy_(weight)
            weight.copy_(held)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights = list(state["weights"])


@lru_cache(maxsize=8)  # it is asked for once an update
def _make_average(half_life: float) -> Callable[..., None]:
    average: Callable[..., None] = get_ema_multi_avg_fn(0.5 ** (1 / half_life))  # type: ignore[no-untyped-call]
    return average
