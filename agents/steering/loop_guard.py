"""LoopGuard: brings a steered loop back where it diverges."""

import math
from collections.abc import Mapping
from typing import Any

from loopwright.agents.steering.snapshots import Slots
from loopwright.envs.loop.guard import Guard
from loopwright.envs.loop.memory import load_memory, save_memory
from loopwright.envs.loop.telemetry import Statistics, Telemetry


class LoopGuard:
    """The environments' guard for one loop, with room for two states of it; it may step in ``limit`` times."""

    def __init__(self, slots: Slots, limit: int) -> None:
        self._slots = slots
        self._guard = Guard(self._slots, None, limit)

    def begin(self) -> None:
        """The loop is as it should be. What its loss is before training is not known."""
        self._guard.begin(0, math.inf)

    @property
    def left(self) -> float:
        """The share of its interventions that is left."""
        return float(1 - self._guard.interventions / self._guard.limit)

    def watch(self, statistics: Statistics, telemetry: Telemetry, plan: Mapping[str, float]) -> tuple[int, bool]:
        """A verdict on what was measured under ``plan``, and whether it gives up; what it restores is restored."""
        verdict, given_up = self._guard.watch(bool(statistics.finite[0]), telemetry, plan)
        return int(verdict), bool(given_up)

    def state_dict(self) -> dict[str, Any]:
        return {
            "guard": save_memory(self._guard, ("arithmetic", "_xp", "_slots")),
            "snapshots": [slot.state_dict() for slot in self._slots],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_memory(self._guard, state["guard"])
        for slot, own in zip(self._slots, state["snapshots"], strict=True):
            slot.load_state_dict(own)
