"""WarmUp: the learning rate of the first iterations climbs to what it is to be.

From a rate that is much too high a few iterations spoil the weights for good, before anything has been seen. A climb by
equal factors, as in a range test (Smith 2017), passes the rates that suit on its way, and brings the policy's first
decisions before the rates that do not. The policy does not see it.
"""

from typing import Any

import torch
from torch.optim import Optimizer

DECISIONS = 2  # that it lasts
MOST = 1 / 8  # of a run
SPAN = 100.0  # how many times smaller than it is to be the rate is at first


def make_warmup(iterations: int | None, optimizer: Optimizer, every: int, steps: int | None) -> "WarmUp":
    """A climb over so many ``iterations``; None takes two decisions of ``every``, and at most ``MOST`` of ``steps``.

    None, too, leaves an optimizer alone that has made updates already: its climb lies behind it.
    """
    if iterations is None:
        most = DECISIONS * every if steps is None else min(DECISIONS * every, int(MOST * steps))
        iterations = 0 if optimizer.state else most
    return WarmUp(iterations)


class WarmUp:
    """Learning rates are lower within an update alone: whoever reads them between two finds what they are to be.

    Attributes:
        iterations: that it lasts; 0 for none.
    """

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations
        self._held: list[tuple[dict[str, Any], Any]] = []

    def begin(self, optimizer: Optimizer, iteration: int) -> None:
        """An update is about to be made, after so many iterations."""
        self.end()
        if iteration >= self.iterations:
            return
        level = SPAN ** ((iteration + 1) / self.iterations - 1)
        for group in optimizer.param_groups:
            rate = group["lr"]
            self._held.append((group, rate.clone() if isinstance(rate, torch.Tensor) else rate))
            _set(group, rate * level)

    def end(self) -> None:
        """It has been made."""
        for group, rate in self._held:
            _set(group, rate)
        self._held.clear()


def _set(group: dict[str, Any], rate: Any) -> None:
    """A rate that is a tensor stays the same one: a compiled or captured step reads it there."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].copy_(rate)
    else:
        group["lr"] = rate
