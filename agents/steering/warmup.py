"""WarmUp: the learning rate climbs to what it is to be, and no further than the loss bears.

From a rate that is much too high a few iterations spoil the weights for good, before anything has been seen. So it
begins at a tenth of what is usual for a network of that size, and climbs by equal factors, a decade a decision, as in a
range test (Smith 2017); a rate that is no higher begins as it is. Where the loss turns up again, by more than losses of
batches differ, the climb ends, at the rate at which the loss was least. The policy, whose decisions it may fall
between, does not see it, and may not raise the rate meanwhile: what it sees of the loss is the climb's.
"""

import math
from typing import Any

import torch
from torch.optim import Optimizer

from loopwright.agents.steering.groups import Groups
from loopwright.agents.steering.rate_scale import find_usual_rate

BELOW = 0.1  # of the usual rate, to begin with
MOST_CLIMB = 1 / 8  # of a run's steps
TURN_RATIO = 1.3  # times the least loss so far, both smoothed
TURN_MARGIN = 3.0  # standard deviations of a batch's loss, by which it lies above that at least
SMOOTHING = 0.3  # of a loss in that
DIFFERENCE = 1.128  # standard deviations that two draws from a normal distribution differ by in the mean


class WarmUp:
    """Learning rates are lower within an update alone: whoever reads them between two finds what they are to be.

    Attributes:
        iterations: that the climb takes; 0 for none.
        span: how many times as high as at its beginning the rate is at its end.
    """

    def __init__(self, iterations: int, span: float) -> None:
        self.iterations, self.span = iterations, span
        self._held: list[tuple[dict[str, Any], Any]] = []
        self._level = 1.0  # what the rate is multiplied by
        self._loss, self._least, self._best = 0.0, math.inf, 1.0  # smoothed, the least of it, and the level there
        self._last, self._differences, self._count = 0.0, 0.0, 0  # of successive losses: their sum, and how many
        self._ended: float | None = None  # the level at which the climb has ended early

    def begin(self, optimizer: Optimizer, iteration: int) -> None:
        """An update is about to be made, after so many iterations."""
        self.end()
        self._level = self._find_level(iteration)
        if self._level == 1.0:
            return
        for group in optimizer.param_groups:
            rate = group["lr"]
            self._held.append((group, rate.clone() if isinstance(rate, torch.Tensor) else rate))
            _set(group, rate * self._level)

    def end(self) -> None:
        """It has been made."""
        for group, rate in self._held:
            _set(group, rate)
        self._held.clear()

    def is_on(self, iteration: int) -> bool:
        """Whether what is seen after so many iterations was seen in the climb."""
        return 0 < iteration <= self.iterations

    def watch(self, loss: float) -> None:
        """Take in the loss of the last update."""
        first = self._least == math.inf
        if self._ended is not None or (first and not math.isfinite(loss)):
            return
        if not first:
            self._differences, self._count = self._differences + abs(loss - self._last), self._count + 1
        self._last = loss
        self._loss = loss if first else self._loss + SMOOTHING * (loss - self._loss)
        if self._loss < self._least:
            self._least, self._best = self._loss, self._level
        elif not math.isfinite(self._loss) or self._turns():
            self._ended = self._best

    def _turns(self) -> bool:
        """Whether the loss lies above its least by more than its noise, which a trend hardly adds to (moving range)."""
        noise = self._differences / (DIFFERENCE * self._count)
        return self._loss > TURN_RATIO * self._least and self._loss - self._least > TURN_MARGIN * noise

    def settle(self) -> float:
        """What the learning rate is to be multiplied by from now on: not 1 where the climb has ended early."""
        level, self._ended = self._ended, None
        if level is None:
            return 1.0
        self.iterations = 0
        return level

    def _find_level(self, iteration: int) -> float:
        if self._ended is not None:
            return self._ended
        return 1.0 if iteration >= self.iterations else float(self.span ** ((iteration + 1) / self.iterations - 1))

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_held"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def make_warmup(iterations: int | None, groups: Groups, every: int, steps: int | None) -> WarmUp:
    """A climb over so many ``iterations``, by ten at least.

    None takes ``every`` for each factor of ten, ``MOST_CLIMB`` of ``steps`` at most, and none for an optimizer that has
    made updates already, or whose rate is of another kind than AdamW's, of which nothing is known.
    """
    known = groups.has_adam_means
    span = groups.rate / (BELOW * find_usual_rate(groups.size)) if known else 1.0
    if iterations is not None:
        return WarmUp(iterations, max(span, 1 / BELOW))
    if not known or groups.optimizer.state or span <= 1:
        return WarmUp(0, 1.0)
    wanted = round(every * math.log10(span))
    return WarmUp(wanted if steps is None else min(wanted, int(MOST_CLIMB * steps)), span)


def _set(group: dict[str, Any], rate: Any) -> None:
    """A rate that is a tensor stays the same one: a compiled or captured step reads it there."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].copy_(rate)
    else:
        group["lr"] = rate
