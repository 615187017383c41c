"""The simple controllers: one that leaves its plan alone, one that moves at random, one that follows given plans."""

import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from loopwright.envs.loop.controller import Described, View
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import Needs
from loopwright.envs.loop.plan import ROW, LoopPlan, stack_plans


def scale_rate(start: LoopPlan, factor: torch.Tensor, view: View) -> torch.Tensor:
    """The plans so far with ``factor [lanes]`` of the starting learning rate."""
    plans = view.plans.clone()
    plans[ROW["learning_rate"]] = start.learning_rate * factor
    return plans


@dataclass(frozen=True)
class Constant(Described):
    """Leaves the starting plan alone."""

    start: LoopPlan
    name: str = "constant"

    @property
    def sets_rate(self) -> bool:
        return False

    def decide(self, view: View) -> torch.Tensor:
        return view.plans


@dataclass(frozen=True)
class RandomPolicy(Described):
    """Moves every knob at random, as an agent does that knows nothing.

    The random numbers are made of what is seen, so that a run comes out the same in whatever batch it runs.
    """

    start: LoopPlan
    knobs: KnobSet
    name: str = "random policy"

    @property
    def needs(self) -> Needs:
        return Needs.OBSERVATION

    @property
    def rolls_back(self) -> bool:
        return self.knobs.rolls_back

    @property
    def sets_rate(self) -> bool:
        return False

    @property
    def fingerprint(self) -> str:
        return f"{self.name} {self.knobs.name} {self.knobs.action} {self.start}"

    def decide(self, view: View) -> torch.Tensor:
        seeds = [zlib.crc32(seen.numpy().tobytes()) for seen in view.observation]
        actions = [self.knobs.sample(np.random.default_rng(seed)) for seed in seeds]
        return self.knobs.apply(np.stack(actions), view.plans, view.step_ratio)


@dataclass(frozen=True)
class OpenLoop(Described):
    """Follows given plans, one a decision, whatever it sees; the last one to the end.

    What is left of an agent without its feedback: its own plans, on another seed or task.
    """

    plans: tuple[LoopPlan, ...]
    name: str = "open loop"

    @property
    def start(self) -> LoopPlan:
        return self.plans[0]

    @property
    def rolls_back(self) -> bool:
        return any(plan.rollback for plan in self.plans)

    @cached_property
    def _stacked(self) -> torch.Tensor:
        return stack_plans(self.plans)

    def decide(self, view: View) -> torch.Tensor:
        return self._stacked[:, view.decisions.long().clamp(max=len(self.plans) - 1)]
