"""Changes: what the last change of each knob brought, and where the learning rate stands, for many runs at once."""

import torch

from loopwright.envs.loop.knobs import KNOBS
from loopwright.envs.loop.observation import STANDING
from loopwright.envs.loop.plan import ROW, SGD

MOVED = 1e-3  # of a knob's range, on either side of 0: less is no change
RUINED = -2.0  # what a change brought after which the guard had to restore the run
WEIGHT = 0.3  # of the newest value in the average that a decision's gain is compared with


class Changes:
    """Compares every decision of ``lanes`` runs with the one before.

    The gain of a decision is how far log L lies below its running average, less what that was lately. What a knob's
    change brought is the gain of the decision it was made for, times the direction in which the knob was moved.
    """

    def __init__(self, lanes: int) -> None:
        self._positions = torch.full((len(STANDING), lanes), torch.nan)
        self._brought = torch.zeros(len(STANDING), lanes)
        self._usual = torch.zeros(lanes)  # the running average of how far the loss lies below its own
        self._log_rate, self._start, self._safe = (torch.full((lanes,), torch.nan) for _ in range(3))
        self._scaled = torch.zeros(lanes, dtype=torch.bool)  # whether another optimizer than sgd is in use

    def forget(self, lanes: torch.Tensor) -> None:
        """Start afresh in ``lanes``, indices or a mask."""
        self._positions[:, lanes] = torch.nan
        self._brought[:, lanes], self._usual[lanes] = 0.0, 0.0
        for log_rate in (self._log_rate, self._start, self._safe):
            log_rate[lanes] = torch.nan

    def learn(self, plans: torch.Tensor, below: torch.Tensor, trained: torch.Tensor, restored: torch.Tensor) -> None:
        """Take in a decision: the ``plans`` it was made under, and how far log L was ``below`` its average.

        Runs that were not ``trained`` are left alone; those ``restored`` by the guard got worse, whatever was measured.
        """
        gain = torch.where(restored, RUINED, torch.nan_to_num(below - self._usual, nan=RUINED))
        change = self._find_positions(plans) - self._positions
        moved = trained & (change.abs() > MOVED)  # not where the position before is unknown
        self._brought = torch.where(moved, change.sign() * gain, self._brought)
        useful = trained & ~restored
        below = torch.nan_to_num(below, nan=0.0, posinf=0.0, neginf=0.0)
        self._usual = torch.where(useful, self._usual + WEIGHT * (below - self._usual), self._usual)
        self._follow(plans)
        fell = useful & (below >= 0) & ~(self._log_rate <= self._safe)
        self._safe = torch.where(fell, self._log_rate, self._safe)

    def note(self, plans: torch.Tensor) -> None:
        """Remember the ``plans`` that the next decision starts from."""
        self._follow(plans)
        self._positions = self._find_positions(plans)
        self._start = torch.where(self._start.isnan(), self._log_rate, self._start)

    def features(self) -> dict[str, torch.Tensor]:
        """The features of this, by name, each ``[lanes]``."""
        return {
            "rate_since_start": torch.nan_to_num(self._log_rate - self._start, nan=0.0),
            "rate_from_safe": torch.nan_to_num(self._log_rate - self._safe, nan=0.0),
            **{f"brought_{name}": row for name, row in zip(STANDING, self._brought, strict=True)},
        }

    def _follow(self, plans: torch.Tensor) -> None:
        """Take in the learning rate. From sgd or to it, it is another unit: what it is compared with moves along."""
        log_rate = plans[ROW["learning_rate"]].clamp(min=1e-12).log()
        scaled = plans[ROW["optimizer"]] > SGD
        switched = (scaled != self._scaled) & ~self._log_rate.isnan()
        shift = torch.where(switched, log_rate - self._log_rate, 0.0)
        self._start, self._safe = self._start + shift, self._safe + shift
        self._log_rate, self._scaled = log_rate, scaled

    @staticmethod
    def _find_positions(plans: torch.Tensor) -> torch.Tensor:
        return torch.stack([KNOBS[name].position(plans) for name in STANDING])
