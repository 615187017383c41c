"""Restraint: what lies between a policy's choice and what is set: limits, the cooldown, the first of the processes."""

from collections.abc import Collection, Mapping

import torch

from loopwright.agents.steering.defaults import choose_limits
from loopwright.agents.steering.groups import Groups
from loopwright.agents.steering.limits import Limits, follow_first, keep_within
from loopwright.agents.steering.pace import Cooldown


class Restraint:
    """Limits hold for what the policy chooses; the cooldown goes on from there, below them too, and is hidden from it.

    Args:
        given: the user's limits; None where nothing was said.
        fields: of the plan, which the policy moves.
        steps, share: see ``Cooldown``.

    Attributes:
        limits: those that hold, of the user and by default.
        level: what the learning rate in force is, as a share of what the policy has chosen.
    """

    def __init__(
        self, given: Mapping[str, tuple[float, float]] | None, fields: Collection[str], steps: int | None, share: float
    ) -> None:
        self._given, self._fields = given, fields
        self._cooldown = Cooldown(steps, share)
        self.limits: Limits = {}
        self.level = self._next = 1.0

    def meet(self, groups: Groups, plan: Mapping[str, float]) -> None:
        """Settle the limits for an optimizer's ``groups``, from the ``plan`` in force."""
        self.limits = choose_limits(self._given, groups, groups.read(plan), self._fields)

    def hold(self, chosen: Mapping[str, float], iterations: int, every: int, device: torch.device) -> dict[str, float]:
        """The plan to set instead of the one ``chosen``, for the next ``every`` iterations after so many."""
        kept, self._next = keep_within(chosen, self.limits), self._cooldown.find_level(iterations, every)
        return follow_first({**kept, "learning_rate": kept["learning_rate"] * self._next}, device)

    def take_force(self) -> None:
        """What ``hold`` gave has been set."""
        self.level = self._next

    def undo(self, plan: Mapping[str, float]) -> dict[str, float]:
        """A plan that is in force, as the policy has chosen it."""
        return {**plan, "learning_rate": plan["learning_rate"] / self.level}
