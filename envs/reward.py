"""Reward: what a decision was worth. Progress is counted in baseline-equivalent cost, so that tasks compare.

E(L) is the geq at which the task's best static configuration first reaches loss L (its calibrated median curve,
interpolated); phi = min(E(best loss so far) / C*, 1), with C* its cost to the target. ``REWARDS`` holds the choices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from loopwright.inner_tasks.errors import UnknownNameError
from loopwright.inner_tasks.task import Calibration


@dataclass(frozen=True)
class Judgement:
    """What a reward may be made of, each ``[lanes]``.

    Attributes:
        before, phi: progress before and after the decision, in [0, 1]; 1 on a hit.
        share: what the decision cost, as a share of the budget.
        spent: share of the budget spent, this decision included.
        hit, missed, diverged: whether the episode has just ended so.
        discount: the agent's, per decision, in (0, 1].
    """

    before: torch.Tensor
    phi: torch.Tensor
    share: torch.Tensor
    spent: torch.Tensor
    hit: torch.Tensor
    missed: torch.Tensor
    diverged: torch.Tensor
    discount: float = 1.0


def progress(j: Judgement) -> torch.Tensor:
    """``time_to_target`` + discount x phi after - phi before, with phi 0 where an episode has ended.

    Potential-based shaping (Ng et al. 1999, theorem 1): it moves no optimum, at the discount it is given. Without a
    discount an episode that hits returns 1 - the share of the budget it used, whatever its way, and one that misses or
    diverges -1, however near it came.
    """
    ended = j.hit | j.missed | j.diverged
    return time_to_target(j) + torch.where(ended, 0.0, j.discount * j.phi) - j.before


def time_to_target(j: Judgement) -> torch.Tensor:
    """1 on a hit, less cost / budget. A run that diverges pays for the budget it has not used, as a miss has."""
    return j.hit.float() - _bill(j)


def anytime(j: Judgement) -> torch.Tensor:
    """phi times cost / budget: the return is the mean progress over the budget, in [0, 1].

    From a hit on progress stays 1; a run that diverged earns nothing more.
    """
    return j.phi * j.share + torch.where(j.hit, 1 - j.spent, 0.0)


def _bill(j: Judgement) -> torch.Tensor:
    return torch.where(j.diverged, j.share + 1 - j.spent, j.share)


REWARDS: dict[str, Callable[[Judgement], torch.Tensor]] = {
    "progress": progress,
    "time": time_to_target,
    "anytime": anytime,
}


def reward_function(name: str) -> Callable[[Judgement], torch.Tensor]:
    """The reward of that name. Raises ``UnknownNameError`` otherwise."""
    if name not in REWARDS:
        raise UnknownNameError("reward", name, list(REWARDS))
    return REWARDS[name]


class ProgressMeter:
    """phi for many lanes, each with its own calibrated curve."""

    def __init__(self, lanes: int) -> None:
        self._geq = torch.zeros(lanes, 2)
        self._loss = torch.zeros(lanes, 2)
        self._scale = torch.ones(lanes)

    def begin(self, lanes: Sequence[int], calibrations: Sequence[Calibration]) -> None:
        """Use these curves for these lanes. Shorter curves are padded with their last point."""
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

    def phi(self, best_loss: torch.Tensor) -> torch.Tensor:
        """E(best_loss) / C* in [0, 1], ``[lanes]``; 0 above the curve's first loss (and for NaN), 1 at the target."""
        best = torch.nan_to_num(best_loss, nan=torch.inf, posinf=torch.inf)[:, None]
        right = torch.searchsorted(-self._loss, -best).clamp(1, self._loss.shape[1] - 1)
        high, low = self._loss.gather(1, right - 1), self._loss.gather(1, right)
        start, end = self._geq.gather(1, right - 1), self._geq.gather(1, right)
        share = ((high - best) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        reached = torch.where(best > self._loss[:, :1], 0.0, start + share * (end - start))
        return (reached[:, 0] / self._scale).clamp(0, 1)
