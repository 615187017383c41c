"""Controllers: whatever decides the next plan. Here the simple ones; also ``schedules``, ``optimizers`` and ``bundle``.

All of them act through the same episodes: they are shown a ``View`` and return plans. What a controller ``needs`` to be
shown it is charged for; the rest it does not see.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from loopwright.envs.calibration import StaticConfiguration
from loopwright.envs.knobs import KnobSet
from loopwright.envs.observation import Needs
from loopwright.envs.plan import ROW, LoopPlan, stack_plans


@dataclass(frozen=True)
class View:
    """What a controller may know before a decision, for ``lanes`` runs.

    Attributes:
        observation: ``[lanes, len(OBSERVATION_NAMES)]``; 0 in all features but those of the controller's needs.
        plans: the plans so far, ``[len(PLAN_FIELDS), lanes]``.
        spent: fraction of the budget spent, ``[lanes]``.
        decisions: decisions taken so far, ``[lanes]``.
        rate_scale: product of the guard's halvings of the learning rate, ``[lanes]``; ``plans`` has them already.
        step_ratio: see ``KnobSet.move``.
    """

    observation: torch.Tensor
    plans: torch.Tensor
    spent: torch.Tensor
    decisions: torch.Tensor
    rate_scale: torch.Tensor
    step_ratio: Callable[[], torch.Tensor] | None = None


@runtime_checkable
class Controller(Protocol):
    """Maps a view to plans; may keep a state per lane, which it forgets where ``view.decisions`` is 0."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> Needs:
        """What it has to be shown."""
        ...

    @property
    def rolls_back(self) -> bool:
        """Whether its plans may ask for a rollback."""
        ...

    @property
    def fingerprint(self) -> str:
        """What tells it from any other controller, for the audit log."""
        ...

    @property
    def start(self) -> LoopPlan:
        """The plan an episode starts from."""
        ...

    def decide(self, view: View) -> torch.Tensor:
        """The next plans, ``[len(PLAN_FIELDS), lanes]``."""
        ...


class Described:
    """A controller that is told apart by its own settings, and needs nothing unless it says otherwise."""

    @property
    def needs(self) -> Needs:
        return Needs.NOTHING

    @property
    def rolls_back(self) -> bool:
        return False

    @property
    def fingerprint(self) -> str:
        return repr(self)


def scaled(start: LoopPlan, factor: torch.Tensor, view: View) -> torch.Tensor:
    """The plans so far with ``factor`` of the starting learning rate, and of what the guard has left of it."""
    plans = view.plans.clone()
    plans[ROW["learning_rate"]] = start.learning_rate * factor * view.rate_scale
    return plans


@dataclass(frozen=True)
class Constant(Described):
    """Leaves the starting plan alone."""

    start: LoopPlan
    name: str = "constant"

    def decide(self, view: View) -> torch.Tensor:
        return view.plans


@dataclass(frozen=True)
class Static(Described):
    """A configuration of the search that set a task's target: its plan and its cosine schedule."""

    configuration: StaticConfiguration
    decisions: int
    name: str = "static"

    @property
    def start(self) -> LoopPlan:
        return self.configuration.plan

    def decide(self, view: View) -> torch.Tensor:
        factors = [self.configuration.factor(int(decision), self.decisions) for decision in view.decisions]
        return scaled(self.start, torch.tensor(factors), view)


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
    def fingerprint(self) -> str:
        return f"{self.name} {self.knobs.name} {self.knobs.action} {self.start}"

    def decide(self, view: View) -> torch.Tensor:
        actions = []
        for seen in view.observation:
            space = self.knobs.space
            space.seed(zlib.crc32(seen.numpy().tobytes()))
            actions.append(space.sample())
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
        plans = self._stacked[:, view.decisions.long().clamp(max=len(self.plans) - 1)]
        plans[ROW["learning_rate"]] *= view.rate_scale
        return plans
