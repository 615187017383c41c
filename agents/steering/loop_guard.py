"""LoopGuard: brings a steered loop back where it diverges, and to its beginning where that has gone wrong.

From a learning rate that is much too high the loss leaps within a few updates and comes back to about what it was:
weights that predict one and the same for every input, which no policy mends. So a decision before which none has
passed, and whose mean loss is ``FALSE_START_RATIO`` times what it was before training, is taken back as a whole, and
the learning rate multiplied by ``FALSE_START_FACTOR``. What it was before training is one batch's loss, so the leap has
to be larger than losses of batches differ: by ``FALSE_START_MARGIN`` standard deviations of the later half of them.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any

from loopwright.agents.steering.snapshots import Slots
from loopwright.envs.loop.guard import FINE, LOSS_SPIKE, RATE_FACTOR, Guard
from loopwright.envs.loop.memory import load_memory, save_memory
from loopwright.envs.loop.telemetry import Statistics, Telemetry

FALSE_START_RATIO, FALSE_START_FACTOR, FALSE_START_MARGIN = 2.0, 0.1, 2.0


class LoopGuard:
    """The environments' guard for one loop, with room for two states of it; it may step in ``limit`` times.

    Attributes:
        rate_factor: what the learning rate is to be multiplied by after what it last took back.
    """

    def __init__(self, slots: Slots, limit: int) -> None:
        self.rate_factor = RATE_FACTOR
        self._slots = slots
        self._guard = Guard(self._slots, None, limit)
        self._before = 0.0  # the loss before training, the largest seen; infinite once a decision has passed

    def begin(self) -> None:
        """The loop is as it should be. What its loss is before training is not known."""
        self._guard.begin(0, math.inf)

    @property
    def left(self) -> float:
        """The share of its interventions that is left."""
        return float(1 - self._guard.interventions / self._guard.limit)

    def watch(
        self, statistics: Statistics, telemetry: Telemetry, plan: Mapping[str, float], losses: Sequence[float]
    ) -> tuple[int, bool]:
        """A verdict on what was measured under ``plan``, and whether it gives up; what it restores is restored.

        ``losses`` are those of the decision's batches.
        """
        finite = bool(statistics.finite[0])
        if finite and self._before < math.inf:  # it has been taken back to where it began, and this is another sample
            self._before = max(self._before, losses[0])
        false_start = finite and _leaps(losses, self._before)
        verdict, given_up = self._guard.watch(finite and not false_start, telemetry, plan)
        if verdict == FINE:
            self._before = math.inf
        self.rate_factor = FALSE_START_FACTOR if false_start else RATE_FACTOR
        return LOSS_SPIKE if false_start else int(verdict), bool(given_up)

    def state_dict(self) -> dict[str, Any]:
        return {
            "guard": save_memory(self._guard, ("arithmetic", "_xp", "_slots")),
            "snapshots": [slot.state_dict() for slot in self._slots],
            "before": self._before,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_memory(self._guard, state["guard"])
        self._before = state["before"]
        for slot, own in zip(self._slots, state["snapshots"], strict=True):
            slot.load_state_dict(own)


def _leaps(losses: Sequence[float], before: float) -> bool:
    """Whether their mean lies above the loss before training by more than their noise."""
    later, mean = losses[len(losses) // 2 :], sum(losses) / len(losses)
    if not 0 < FALSE_START_RATIO * before < mean:
        return False
    noise = stdev(later) if len(later) > 1 else math.inf
    return mean - before > FALSE_START_MARGIN * noise
