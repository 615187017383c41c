"""Restraint: what lies between a policy and what is set: scale, limits, warm-up, cooldown, one process of many."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from loopwright.agents.steering.defaults import find_limits
from loopwright.agents.steering.groups import Groups
from loopwright.agents.steering.limits import Limits, check_limits, is_held, keep_within
from loopwright.agents.steering.pace import Cooldown
from loopwright.agents.steering.processes import average_over_processes, follow_first
from loopwright.agents.steering.rate_scale import find_rate_scale
from loopwright.agents.steering.warmup import WarmUp
from loopwright.envs.loop.knobs import Knob


class Restraint:
    """Limits hold for what the policy chooses; the cooldown goes on from there, below them too.

    Neither that nor the warm-up, nor by how much the rates of a large network are smaller is seen by the policy.

    Args:
        given: the user's limits, beside which those by default hold for the other fields; {} frees all.
        fields: of the plan, which the policy moves.
        cooldown: how the learning rate goes down at the end.

    Attributes:
        warmup: how it climbs at the beginning, within updates.
        limits: those that hold, of the user and by default.
        level: what the learning rate in force is, as a share of what the policy has chosen.
    """

    def __init__(
        self, given: Mapping[str, tuple[float, float]] | None, fields: Sequence[str], cooldown: Cooldown,
        warmup: WarmUp,
    ) -> None:  # fmt: skip
        self._given, self._fields = None if given is None else check_limits(given), fields
        self._cooldown, self.warmup = cooldown, warmup
        self.limits: Limits = {}
        self._scale = self.level = self._next = 1.0

    def meet(self, groups: Groups, plan: Mapping[str, float]) -> None:
        """Settle limits and scale for an optimizer's ``groups``, from the ``plan`` in force."""
        own = self._given or {}
        self.limits = {} if self._given == {} else find_limits(groups, groups.read(plan), self._fields) | own
        scale = find_rate_scale(groups.size) if groups.has_adam_means and "learning_rate" in self._fields else 1.0
        self.level *= scale / self._scale
        self._scale, self._next = scale, self.level

    def say_what_is_off(self, optimizer: Optimizer, knobs: Sequence[Knob], steered: Sequence[bool]) -> None:
        """Warn of ``knobs`` that have no counterpart in the optimizer, unless limits hold them anyway."""
        off = [k.name for k, on in zip(knobs, steered, strict=True) if not on and not is_held(k.field, self.limits)]
        if off:
            kind = type(optimizer).__name__
            warnings.warn(f"{kind} has nothing for the policy's {', '.join(off)}: left as they are", stacklevel=5)

    def hold(self, chosen: Mapping[str, float], iterations: int, every: int, device: torch.device) -> dict[str, float]:
        """The plan to set instead of the one ``chosen``, for the next ``every`` iterations after so many."""
        scaled = {**chosen, "learning_rate": chosen["learning_rate"] * self._scale}
        kept, cooled = keep_within(scaled, self.limits), self._cooldown.find_level(iterations, every)
        self._next = self._scale * cooled
        return follow_first({**kept, "learning_rate": kept["learning_rate"] * cooled}, device)

    def watch_climb(self, loss: torch.Tensor, iterations: int, groups: Groups) -> None:
        """Take in the loss of the last of so many updates, while the rate climbs."""
        if self.warmup.is_on(iterations):
            self.warmup.watch(average_over_processes([float(loss)], groups.device)[0])

    def rein(self, steps: Sequence[float], iterations: int) -> list[float]:
        """A policy's ``steps``, of which that of the learning rate does not lead up while it climbs anyway."""
        held = "learning_rate" if self.warmup.is_on(iterations) else None
        return [min(step, 0.0) if field == held else step for step, field in zip(steps, self._fields, strict=True)]

    def take_force(self) -> None:
        """What ``hold`` gave has been set."""
        self.level = self._next

    def undo(self, plan: Mapping[str, float]) -> dict[str, float]:
        """A plan that is in force, as the policy has chosen it."""
        return {**plan, "learning_rate": plan["learning_rate"] / self.level}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed job's optimizer, whose settings have been steered, no longer tells."""
        return {
            "level": self.level, "scale": self._scale, "limits": dict(self.limits), "warmup": self.warmup.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.level, self._scale, self.limits = state["level"], state["scale"], dict(state["limits"])
        self.warmup.load_state_dict(state["warmup"])
