"""UpdateWatch: the gradient statistics of some updates of a user's loop."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from loopwright.agents.steering.groups import Groups
from loopwright.envs.loop.compiled_probe import make_probe
from loopwright.envs.loop.telemetry import PROBE, Statistics

_Tensors = list[torch.Tensor]


class UpdateWatch:
    """Measures gradients as the environments do, of whatever parameters an update has."""

    def __init__(self) -> None:
        self._parameters: _Tensors = []

    def begin(self) -> None:
        """Forget what was measured."""
        if self._parameters:
            self._probe.begin()

    def measure(self, parameters: _Tensors, gradients: _Tensors, momenta: _Tensors) -> None:
        """Look at the ``gradients`` of an update that is about to be made, unclipped."""
        if not self._knows(parameters):
            self._parameters, self._probe = parameters, make_probe(parameters)
            self._probe.begin()
        self._probe.measure(gradients, momenta, parameters)

    def _knows(self, parameters: _Tensors) -> bool:
        """Whether these are the parameters of the update before, or such as they."""
        known = self._parameters
        same = len(parameters) == len(known) and all(map(operator.is_, parameters, known))
        return same or [p.shape for p in parameters] == [p.shape for p in known]

    @torch.no_grad()
    def measure_held(self, groups: Groups, parameters: _Tensors, scale: float) -> None:
        """The same for gradients that the parameters hold, ``scale`` times as large as they are."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if scale != 1:
            gradients = [g / scale for g in gradients]
        self.measure(parameters, gradients, groups.momenta(parameters))

    def read(self, losses: Sequence[float], updates: int) -> Statistics:
        """What was measured, with the ``losses`` of the microbatches meanwhile and the number of ``updates``."""
        count, squares = float(len(losses)), sum(loss * loss for loss in losses)
        sums = np.array([count, count, sum(losses), squares, float(updates)])[:, None]
        window = self._probe.read() if self._parameters else np.zeros((0, len(PROBE), 1), np.float32)
        return Statistics(sums, window)

    def state_dict(self) -> dict[str, Any] | None:
        return self._probe.state_dict() if self._parameters else None

    def load_state_dict(self, state: dict[str, Any] | None, parameters: _Tensors) -> None:
        if state is not None:
            self._parameters, self._probe = parameters, make_probe(parameters)
            self._probe.load_state_dict(state)


def read_numbers(found: Sequence[torch.Tensor]) -> list[float]:
    """The numbers in tensors without dimensions, which may lie on several devices."""
    alike = len(set(map(operator.attrgetter("device", "dtype"), found))) == 1
    stacked = torch.stack(list(found)) if alike else torch.stack([each.cpu().double() for each in found])
    numbers: list[float] = stacked.tolist()
    return numbers


def find_scale(optimizer: Optimizer) -> float:
    """What a GradScaler has multiplied the gradients by, where the optimizer divides by it itself."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)
