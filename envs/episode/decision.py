"""Decision: what one decision of many episodes brought, and the codes in which it says so."""

import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from loopwright.envs.loop.guard import FINE
from loopwright.envs.loop.telemetry import Telemetry

OUTCOMES = ("running", "hit", "miss", "diverged")
RUNNING, HIT, MISS, DIVERGED = range(len(OUTCOMES))


@dataclass(frozen=True)
class Decision:
    """What one decision brought, each ``[lanes]``: reward, outcome and verdict codes, target loss and metric."""

    reward: torch.Tensor
    outcome: torch.Tensor
    verdict: torch.Tensor
    loss: torch.Tensor
    metric: torch.Tensor

    @property
    def done(self) -> torch.Tensor:
        return self.outcome != RUNNING

    def without(self, lanes: npt.NDArray[np.bool_]) -> "Decision":
        """The same with nothing decided in some ``lanes``, a mask."""
        mask, nothing = torch.from_numpy(lanes), Decision.none(len(self.reward))
        return Decision(*(torch.where(mask, getattr(nothing, f.name), getattr(self, f.name)) for f in fields(self)))

    @classmethod
    def none(cls, lanes: int) -> "Decision":
        """What lanes bring in which nothing was decided."""
        nothing = torch.full((lanes,), math.nan)
        return cls(torch.zeros(lanes), torch.full((lanes,), RUNNING), torch.full((lanes,), FINE), nothing, nothing)


@dataclass(frozen=True)
class Step:
    """A decision as it is put on record.

    Attributes:
        seen: the observation before it, ``[lanes, features]``.
        found: the plans before it, ``[len(PLAN_FIELDS), lanes]``.
        actions: what was asked for, ``[lanes, knobs]``, where the plans came from actions.
        plans: those that were executed.
        telemetry: what was measured under them, numbers ``[lanes]``.
        decision: what came of it.
    """

    seen: torch.Tensor
    found: torch.Tensor
    actions: npt.NDArray[np.generic] | None
    plans: torch.Tensor
    telemetry: Telemetry
    decision: Decision
