"""Changes: what the last change of each knob brought, and where the learning rate stands, for many runs at once."""

import math
from collections.abc import Mapping
from typing import Any

from loopwright.envs.loop.arithmetic import Arithmetic, Number
from loopwright.envs.loop.observation import STANDING
from loopwright.envs.loop.plan import SGD

MOVED = 1e-3  # of a knob's range, on either side of 0: less is no change
RUINED = -2.0  # what a change brought after which the guard had to restore the run
WEIGHT = 0.3  # of the newest value in the average that a decision's gain is compared with


class Changes:
    """Compares every decision with the one before.

    The gain of a decision is how far log L lies below its running average, less what that was lately. What a knob's
    change brought is the gain of the decision it was made for, times the direction in which the knob was moved.

    Attributes:
        brought: what the last change of each knob of ``STANDING`` brought, by name.
    """

    def __init__(self, arithmetic: Arithmetic) -> None:
        self._xp, unknown = arithmetic, arithmetic.fill(math.nan)
        self._positions = dict.fromkeys(STANDING, unknown)
        self.brought = dict.fromkeys(STANDING, arithmetic.fill(0.0))
        self._usual = arithmetic.fill(0.0)  # the running average of how far the loss lies below its own
        self._log_rate, self._start, self._safe = unknown, unknown, unknown
        self._scaled = arithmetic.fill(False)  # whether another optimizer than sgd is in use

    def forget(self, runs: Any) -> None:
        """Start afresh in ``runs``, a mask or positions."""
        put = self._xp.put
        self._positions = {name: put(own, runs, math.nan) for name, own in self._positions.items()}
        self.brought = {name: put(own, runs, 0.0) for name, own in self.brought.items()}
        self._usual = put(self._usual, runs, 0.0)
        self._log_rate, self._start, self._safe = (
            put(own, runs, math.nan) for own in (self._log_rate, self._start, self._safe)
        )

    def learn(
        self, plan: Mapping[str, Number], positions: Mapping[str, Number], below: Number, trained: Number,
        restored: Number,
    ) -> None:  # fmt: skip
        """Take in a decision: the ``plan`` it was made under, and how far log L was ``below`` its average.

        ``positions`` are those of the knobs (``find_positions``). Runs that were not ``trained`` are left alone; those
        ``restored`` by the guard got worse, whatever was measured.
        """
        xp, where = self._xp, self._xp.where
        gain = below - self._usual
        gain = where(restored | xp.negate(xp.isfinite(gain)), RUINED, gain)
        for name, old in self._positions.items():
            change = positions[name] - old
            moved = trained & (xp.absolute(change) > MOVED)  # not where the position before is unknown
            self.brought[name] = where(moved, xp.sign(change) * gain, self.brought[name])
        useful = trained & xp.negate(restored)
        below = where(xp.isfinite(below), below, 0.0)
        self._usual = where(useful, self._usual + WEIGHT * (below - self._usual), self._usual)
        self._follow(plan)
        fell = useful & (below >= 0) & xp.negate(self._log_rate <= self._safe)
        self._safe = where(fell, self._log_rate, self._safe)

    def note(self, plan: Mapping[str, Number], positions: Mapping[str, Number]) -> None:
        """Remember the ``plan`` that the next decision starts from."""
        self._follow(plan)
        self._positions = {name: positions[name] for name in STANDING}
        self._start = self._xp.where(self._xp.isnan(self._start), self._log_rate, self._start)

    def features(self) -> dict[str, Number]:
        """The features of this, by name."""
        found = {f"brought_{name}": value for name, value in self.brought.items()}
        for name, other in (("rate_since_start", self._start), ("rate_from_safe", self._safe)):
            ratio = self._log_rate - other
            found[name] = self._xp.where(self._xp.isnan(ratio), 0.0, ratio)
        return found

    def _follow(self, plan: Mapping[str, Number]) -> None:
        """Take in the learning rate. From sgd or to it, it is another unit: what it is compared with moves along."""
        xp = self._xp
        log_rate = xp.log(xp.maximum(plan["learning_rate"], 1e-12))
        scaled = plan["optimizer"] > SGD
        switched = (scaled != self._scaled) & xp.negate(xp.isnan(self._log_rate))
        shift = xp.where(switched, log_rate - self._log_rate, 0.0)
        self._start, self._safe = self._start + shift, self._safe + shift
        self._log_rate, self._scaled = log_rate, scaled
