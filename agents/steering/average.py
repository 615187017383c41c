"""The averaged copy of the weights that a plan's ``average`` asks for."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

INTAKES = 4  # of a half-life: the weights are taken in as often, or with every update where that is shorter


class WeightAverage:
    """An exponential average of parameters, by torch's own, and of such ``buffers`` as go with them.

    The statistics of batch norm are those of the weights as they were: an average of weights fits an average of these.
    Successive weights hardly differ, and to take them in is a pass over them and their average: so it is not done with
    every update, but ``INTAKES`` times in a half-life, and whenever the average is asked for.
    """

    def __init__(self, buffers: Iterable[torch.Tensor] = ()) -> None:
        self._buffers = [buffer for buffer in buffers if buffer.is_floating_point()]
        self.weights: list[torch.Tensor] = []  # the parameters', and then the buffers'
        self._half_life, self._waiting = 0.0, 0  # updates since the weights were last taken in

    def update(self, parameters: Sequence[torch.Tensor], half_life: float) -> None:
        """Note an update of the parameters; half of the average is forgotten every ``half_life`` updates."""
        self._half_life, self._waiting = half_life, self._waiting + 1
        if half_life <= 0:
            self.weights = []
        elif not self.weights or self._waiting * INTAKES >= half_life:
            self._take_in(parameters)

    @torch.no_grad()
    def _take_in(self, parameters: Sequence[torch.Tensor]) -> None:
        parameters = [*parameters, *self._buffers]
        if [p.shape for p in parameters] != [w.shape for w in self.weights]:
            self.weights = [p.detach().clone() for p in parameters]
        elif self._waiting:
            _make_average(self._half_life / self._waiting)(self.weights, parameters, 1)
        self._waiting = 0

    @contextmanager
    def applied(self, parameters: Sequence[torch.Tensor]) -> Iterator[None]:
        """Within it the parameters are the average, where there is one."""
        if not self.weights:
            yield
            return
        self._take_in(parameters)
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
        return {"weights": self.weights, "half_life": self._half_life, "waiting": self._waiting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights, self._half_life, self._waiting = list(state["weights"]), state["half_life"], state["waiting"]


@lru_cache(maxsize=64)
def _make_average(half_life: float) -> Callable[..., None]:
    average: Callable[..., None] = get_ema_multi_avg_fn(0.5 ** (1 / half_life))  # type: ignore[no-untyped-call]
    return average
