"""HoldRule: a loss counts as reached when two evaluations in a row are at or below it. One alone may be luck."""

import math

import torch


class HoldRule:
    """Watches whether ``lanes`` runs hold a loss, each its own.

    Attributes:
        held: the runs that have held it, ``[lanes]``; that stays so until ``begin``.
        cost: geq at the first of the two evaluations that count, ``[lanes]`` float64; NaN while the last one was above.
    """

    def __init__(self, lanes: int) -> None:
        self.held = torch.zeros(lanes, dtype=torch.bool)
        self.cost = torch.full((lanes,), math.nan, dtype=torch.float64)
        self._level = torch.full((lanes,), math.nan)

    def begin(self, index: torch.Tensor, losses: torch.Tensor) -> None:
        """Start afresh in the lanes ``index``, with the ``losses`` to be held there; one that is NaN never is."""
        self.held[index], self.cost[index], self._level[index] = False, math.nan, losses

    def see(self, loss: torch.Tensor, cost: torch.Tensor) -> torch.Tensor:
        """Take in an evaluation, which came at this ``cost``, both ``[lanes]``; returns ``held``."""
        below, once = loss <= self._level, ~self.cost.isnan()
        seen = torch.where(below, torch.where(once, self.cost, cost), math.nan)
        self.cost = torch.where(self.held, self.cost, seen)
        self.held = self.held | (below & once)
        return self.held


def hold_losses(curves: torch.Tensor) -> torch.Tensor:
    """Of curves ``[lanes, evaluations]``, the loss that each evaluation holds together with the one after it."""
    return torch.maximum(curves[:, :-1], curves[:, 1:])
