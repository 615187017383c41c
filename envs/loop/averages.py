"""Running averages of series: what an observation and the guard compare the present with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loopwright.envs.loop.arithmetic import Arithmetic, Number

HALF_LIVES = {"fast": 2.0, "slow": 8.0, "long": 32.0}  # of the averages that an observation is made of, in decisions
_WEIGHTS = {speed: 1 - 0.5 ** (1 / half_life) for speed, half_life in HALF_LIVES.items()}

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]


class Averages:
    """Exponential averages of some ``series``, with each of ``HALF_LIVES``.

    They start from zeros, whose weight is divided out again (Kingma & Ba 2015, section 3).

    Attributes:
        started: whether anything was taken in, a truth value per run.
    """

    def __init__(self, arithmetic: Arithmetic, series: Sequence[str]) -> None:
        self._xp, zero = arithmetic, arithmetic.fill(0.0)
        self.started = arithmetic.fill(False)
        self._filled = dict.fromkeys(HALF_LIVES, zero)  # how much of them is not those zeros
        self._sums = dict.fromkeys(((name, speed) for name in series for speed in HALF_LIVES), zero)

    def forget(self, runs: Any) -> None:
        """Start afresh in ``runs``, a mask or positions."""
        put = self._xp.put
        self.started = put(self.started, runs, False)
        self._filled = {speed: put(value, runs, 0.0) for speed, value in self._filled.items()}
        self._sums = {key: put(value, runs, 0.0) for key, value in self._sums.items()}

    def update(self, values: Mapping[str, Number], mask: Number) -> None:
        """Take in a value of every series where ``mask`` is set."""
        where, filled, sums = self._xp.where, self._filled, self._sums
        self.started = self.started | mask
        for speed, weight in _WEIGHTS.items():
            filled[speed] = where(mask, filled[speed] + weight * (1 - filled[speed]), filled[speed])
            for name, value in values.items():
                old = sums[name, speed]
                sums[name, speed] = where(mask, old + weight * (value - old), old)

    def get(self, name: str, speed: str) -> Number:
        """The average of one series; 0 where nothing was taken in."""
        return self._sums[name, speed] / self._xp.maximum(self._filled[speed], 1e-6)


class RunningMoments:
    """Exponentially weighted mean and variance of a series (West 1979's update).

    Attributes:
        mean: of what was taken in.
        seen: how many values that were.
    """

    def __init__(self, arithmetic: Arithmetic, half_life: float) -> None:
        self._xp, self._weight = arithmetic, 1 - 0.5 ** (1 / half_life)
        self.mean, self._variance, self.seen = (arithmetic.fill(0.0) for _ in range(3))

    def forget(self, runs: Any) -> None:
        """Start afresh in ``runs``, a mask or positions."""
        put = self._xp.put
        self.mean, self._variance, self.seen = (put(own, runs, 0.0) for own in (self.mean, self._variance, self.seen))

    def distance(self, value: Number) -> Number:
        """``value`` minus the mean so far; 0 where nothing was seen."""
        return self._xp.where(self.seen > 0, value - self.mean, 0.0)

    @property
    def deviation(self) -> Number:
        return self._xp.sqrt(self._variance)

    def update(self, value: Number, mask: Number) -> None:
        """Take in ``value`` where ``mask`` is set; one that is not finite is passed over."""
        xp = self._xp
        taken = mask & xp.isfinite(value)
        # While little was seen every value weighs the same, so that the first does not count for many.
        weight = xp.maximum(self._weight, 1 / (self.seen + 1))
        distance = xp.where(taken, value - self.mean, 0.0)
        variance = (1 - weight) * (self._variance + weight * distance * distance)
        self.mean = self.mean + weight * distance
        self._variance = xp.where(taken, variance, self._variance)
        self.seen = self.seen + xp.where(taken, 1.0, 0.0)
