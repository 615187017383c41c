"""ProgressMeter: how far a run has come, in the cost at which the task's best static configuration gets as far."""

import math
from collections.abc import Sequence

import torch

from loopwright.inner_tasks.task import Calibration


class ProgressMeter:
    """phi for many lanes, each with its own calibrated curve."""

    def __init__(self, lanes: int) -> None:
        self._best = torch.full((lanes,), math.inf)
        self._geq = torch.zeros(lanes, 2)
        self._loss = torch.zeros(lanes, 2)
        self._scale = torch.ones(lanes)

    def begin(self, lanes: Sequence[int], calibrations: Sequence[Calibration]) -> None:
        """New runs in these lanes, with these curves. Shorter curves are padded with their last point."""
        self._best[list(lanes)] = math.inf
        for lane, calibration in zip(lanes, calibrations, strict=True):
            points = torch.tensor(calibration.curve)
            self._grow(len(points))
            padding = points[-1:].expand(self._geq.shape[1] - len(points), 2)
            self._geq[lane], self._loss[lane] = torch.cat([points, padding]).T
            self._scale[lane] = calibration.cost

    def _grow(self, length: int) -> None:
        missing = length - self._geq.shape[1]
        if missing > 0:
            self._geq = torch.cat([self._geq, self._geq[:, -1:].expand(-1, missing)], dim=1)
            self._loss = torch.cat([self._loss, self._loss[:, -1:].expand(-1, missing)], dim=1)

    def see(self, loss: torch.Tensor) -> torch.Tensor:
        """Take in an evaluation ``[lanes]``; phi of the lowest loss so far, one that is NaN passed over."""
        self._best = torch.minimum(self._best, torch.nan_to_num(loss, nan=math.inf))
        return self.phi(self._best)

    def phi(self, best_loss: torch.Tensor) -> torch.Tensor:
        """E(best_loss) / C* in [0, 1], ``[lanes]``; 0 above the curve's first loss (and for NaN), 1 at the target."""
        best = torch.nan_to_num(best_loss, nan=torch.inf, posinf=torch.inf)[:, None]
        right = torch.searchsorted(-self._loss, -best).clamp(1, self._loss.shape[1] - 1)
        high, low = self._loss.gather(1, right - 1), self._loss.gather(1, right)
        start, end = self._geq.gather(1, right - 1), self._geq.gather(1, right)
        share = ((high - best) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        reached = torch.where(best > self._loss[:, :1], 0.0, start + share * (end - start))
        return (reached[:, 0] / self._scale).clamp(0, 1)
