"""Running averages of series, for many runs at once: what an observation and the guard compare the present with."""

from collections.abc import Mapping, Sequence

import torch

HALF_LIVES = {"fast": 2.0, "slow": 8.0, "long": 32.0}  # of the averages that an observation is made of, in decisions


class Averages:
    """Exponential averages of the ``series`` of ``lanes`` runs, with each of ``HALF_LIVES``.

    They start from zeros, whose weight is divided out again (Kingma & Ba 2015, section 3).
    """

    def __init__(self, lanes: int, series: Sequence[str]) -> None:
        self._filled = {speed: torch.zeros(lanes) for speed in HALF_LIVES}  # how much of them is not those zeros
        self._sums = {(name, speed): torch.zeros(lanes) for name in series for speed in HALF_LIVES}

    @property
    def started(self) -> torch.Tensor:
        """Whether anything was taken in, a mask ``[lanes]``."""
        return self._filled["fast"] > 0

    def forget(self, lanes: torch.Tensor) -> None:
        """Start afresh in ``lanes``, indices or a mask."""
        for tensor in (*self._filled.values(), *self._sums.values()):
            tensor[lanes] = 0.0

    def update(self, values: Mapping[str, torch.Tensor], mask: torch.Tensor) -> None:
        """Take in a value of every series, each ``[lanes]``, where ``mask`` is set."""
        for speed, half_life in HALF_LIVES.items():
            weight = 1 - 0.5 ** (1 / half_life)

            def moved(old: torch.Tensor, value: torch.Tensor | float, weight: float = weight) -> torch.Tensor:
                return torch.where(mask, old + weight * (value - old), old)

            self._filled[speed] = moved(self._filled[speed], 1.0)
            for name, value in values.items():
                self._sums[name, speed] = moved(self._sums[name, speed], value)

    def get(self, name: str, speed: str) -> torch.Tensor:
        """The average of one series, ``[lanes]``; 0 where nothing was taken in."""
        return self._sums[name, speed] / self._filled[speed].clamp(min=1e-6)


class RunningMoments:
    """Exponentially weighted mean and variance of a series for each of ``lanes`` runs (West 1979's update)."""

    def __init__(self, lanes: int, half_life: float) -> None:
        self.weight = 1 - 0.5 ** (1 / half_life)
        self.mean, self.variance, self.seen = torch.zeros(lanes), torch.zeros(lanes), torch.zeros(lanes)

    def forget(self, lanes: torch.Tensor) -> None:
        """Start afresh in ``lanes``, indices or a mask."""
        for tensor in (self.mean, self.variance, self.seen):
            tensor[lanes] = 0.0

    def distance(self, value: torch.Tensor) -> torch.Tensor:
        """``value`` minus the mean so far, ``[lanes]``; 0 where nothing was seen."""
        return torch.where(self.seen > 0, value - self.mean, 0.0)

    @property
    def deviation(self) -> torch.Tensor:
        return self.variance.sqrt()

    def update(self, value: torch.Tensor, mask: torch.Tensor) -> None:
        """Take in ``value`` where ``mask`` is set; a value that is not finite is passed over."""
        mask = mask & torch.isfinite(value)
        # While little was seen every value weighs the same, so that the first does not count for many.
        weight = torch.maximum(torch.tensor(self.weight), 1 / (self.seen + 1))
        distance = torch.nan_to_num(value - self.mean, nan=0.0, posinf=0.0, neginf=0.0)
        variance = (1 - weight) * (self.variance + weight * distance**2)
        self.mean = torch.where(mask, self.mean + weight * distance, self.mean)
        self.variance = torch.where(mask, variance, self.variance)
        self.seen = self.seen + mask.float()
