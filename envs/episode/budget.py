"""Budget: what the runs of a batch have spent, and what they may. Gradients, looks and updates are all paid in geq."""

from typing import NamedTuple

import torch

SPENT = 1 - 1e-6  # the share from which on a budget counts as spent: costs are sums of floats


class Bill(NamedTuple):
    """What is due for a decision, each a share of the budget, ``[lanes]``: since the last bill, and in all."""

    share: torch.Tensor
    spent: torch.Tensor


class Budget:
    """Geq spent and allowed in ``lanes`` runs.

    Attributes:
        cost, total: ``[lanes]`` float64.
    """

    def __init__(self, lanes: int) -> None:
        self.cost = torch.zeros(lanes, dtype=torch.float64)
        self.total = torch.ones(lanes, dtype=torch.float64)
        self._billed = torch.zeros(lanes, dtype=torch.float64)

    def begin(self, index: torch.Tensor, totals: torch.Tensor, cost: torch.Tensor) -> None:
        """New runs in the lanes ``index``, which may spend ``totals`` and have spent ``cost`` before they train."""
        self.total[index], self.cost[index], self._billed[index] = totals, cost, 0.0

    def charge(self, training: torch.Tensor, look: torch.Tensor) -> None:
        """Add geq spent on training and on a look to the cost, each ``[lanes]``, up to the budget."""
        self.cost = torch.minimum(self.cost + training.double() + look, self.total)

    def bill(self) -> Bill:
        """What was spent since the last bill."""
        share, spent = (self.cost - self._billed) / self.total, self.cost / self.total
        self._billed = self.cost.clone()
        return Bill(share.float(), spent.float())

    @property
    def left(self) -> torch.Tensor:
        """Share that is left, ``[lanes]`` in [0, 1]."""
        return (1 - self.cost / self.total).clamp(0, 1).float()

    @property
    def exhausted(self) -> torch.Tensor:
        """The runs that may spend no more, a mask ``[lanes]``."""
        return self.cost >= self.total * SPENT
