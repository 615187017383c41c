"""Restraint: what lies between a policy's choice and what is set: limits, the cooldown, the first of the processes."""

import warnings
from collections.abc import Collection, Mapping, Sequence

import torch
from torch.optim import Optimizer

from loopwright.agents.steering.defaults import find_limits
from loopwright.agents.steering.groups import Groups
from loopwright.agents.steering.limits import Limits, check_limits, is_held, keep_within
from loopwright.agents.steering.pace import Cooldown
from loopwright.agents.steering.processes import follow_first
from loopwright.envs.loop.knobs import Knob


class Restraint:
    """Limits hold for what the policy chooses; the cooldown goes on from there, below them too, and is hidden from it.

    Args:
        given: the user's limits, beside which those by default hold for the other fields; {} frees all.
        fields: of the plan, which the policy moves.
        steps, share: see ``Cooldown``.

    Attributes:
        limits: those that hold, of the user and by default.
        level: what the learning rate in force is, as a share of what the policy has chosen.
    """

    def __init__(
        self, given: Mapping[str, tuple[float, float]] | None, fields: Collection[str], steps: int | None, share: float
    ) -> None:
        self._given, self._fields = None if given is None else check_limits(given), fields
        self._cooldown = Cooldown(steps, share)
        self.limits: Limits = {}
        self.level = self._next = 1.0

    def meet(self, groups: Groups, plan: Mapping[str, float]) -> None:
        """Settle the limits for an optimizer's ``groups``, from the ``plan`` in force."""
        own = self._given or {}
        self.limits = {} if self._given == {} else find_limits(groups, groups.read(plan), self._fields) | own

    def say_what_is_off(self, optimizer: Optimizer, knobs: Sequence[Knob], steered: Sequence[bool]) -> None:
        """Warn of ``knobs`` that have no counterpart in the optimizer, unless limits hold them anyway."""
        off = [k.name for k, on in zip(knobs, steered, strict=True) if not on and not is_held(k.field, self.limits)]
        if off:
            kind = type(optimizer).__name__
            warnings.warn(f"{kind} has nothing for the policy's {', '.join(off)}: left as they are", stacklevel=5)

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
