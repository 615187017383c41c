"""Controllers: whatever decides the next plan. Constants, schedules, a plateau rule, and learned policies (``bundle``).

All of them act through the same episodes: they are shown a ``View`` and return plans. A controller that ``looks`` at
the control split is charged for it; one that does not sees no observation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from loopwright.envs.observation import OBSERVATION_NAMES
from loopwright.envs.plan import ROW, LoopPlan, stack_plans
from loopwright.inner_tasks.errors import LoopwrightError


@dataclass(frozen=True)
class View:
    """What a controller may know before a decision, for ``lanes`` runs.

    Attributes:
        observation: ``[lanes, len(OBSERVATION_NAMES)]``; zeros for a controller that does not look.
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
    def looks(self) -> bool: ...

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


class _Described:
    """A controller that is told apart by its own settings."""

    @property
    def rolls_back(self) -> bool:
        return False

    @property
    def fingerprint(self) -> str:
        return repr(self)


def _scaled(start: LoopPlan, factor: torch.Tensor, view: View) -> torch.Tensor:
    """The plans so far with ``factor`` of the starting learning rate, and of what the guard has left of it."""
    plans = view.plans.clone()
    plans[ROW["learning_rate"]] = start.learning_rate * factor * view.rate_scale
    return plans


@dataclass(frozen=True)
class Constant(_Described):
    """Leaves the starting plan alone."""

    start: LoopPlan
    name: str = "constant"
    looks: bool = False

    def decide(self, view: View) -> torch.Tensor:
        return view.plans


@dataclass(frozen=True)
class Cosine(_Described):
    """Linear warm-up over ``warm_up`` of the horizon, then cosine decay to ``final`` of the rate at ``horizon``.

    ``horizon`` is a fraction of the budget, in (0, 1]; after it the rate stays. Loshchilov & Hutter 2017, eq. 5.
    """

    start: LoopPlan
    horizon: float = 1.0
    warm_up: float = 0.0
    final: float = 0.02
    name: str = "cosine"
    looks: bool = False

    def __post_init__(self) -> None:
        for name, holds in (("horizon", 0 < self.horizon <= 1), ("warm_up", 0 <= self.warm_up < 1),
                            ("final", 0 <= self.final <= 1)):  # fmt: skip
            if not holds:
                raise LoopwrightError(f"{name} of a cosine schedule must be a fraction, got {getattr(self, name)}")

    def decide(self, view: View) -> torch.Tensor:
        share = (view.spent / self.horizon).clamp(max=1.0)
        ramp = (share + 0.02) / max(self.warm_up, 1e-9)
        decay = (share - self.warm_up).clamp(min=0) / (1 - self.warm_up)
        cosine = self.final + (1 - self.final) * 0.5 * (1 + torch.cos(math.pi * decay))
        return _scaled(self.start, torch.where(share < self.warm_up, ramp.clamp(max=1.0), cosine), view)


@dataclass
class ReduceOnPlateau(_Described):
    """Multiplies the rate by ``factor`` when the control loss has not improved by ``threshold`` for ``patience`` looks.

    The rule of ``torch.optim.lr_scheduler.ReduceLROnPlateau`` in its relative mode, on the smoothed control loss.
    """

    start: LoopPlan
    factor: float = 0.5
    patience: int = 4
    threshold: float = 0.01
    name: str = "plateau"
    looks: bool = True
    _best: torch.Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    _waited: torch.Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    _scale: torch.Tensor = field(default_factory=lambda: torch.empty(0), repr=False)

    def decide(self, view: View) -> torch.Tensor:
        loss = view.observation[:, OBSERVATION_NAMES.index("control_progress")]
        if len(self._best) != len(loss):
            self._best, self._waited, self._scale = loss.clone(), torch.zeros_like(loss), torch.ones_like(loss)
        fresh = view.decisions == 0
        better = fresh | (loss < self._best + math.log1p(-self.threshold))
        self._best = torch.where(better, loss, self._best)
        self._waited = torch.where(better, 0.0, self._waited + 1)
        tired = self._waited > self.patience
        self._scale = torch.where(fresh, 1.0, torch.where(tired, self._scale * self.factor, self._scale))
        self._waited = torch.where(tired, 0.0, self._waited)
        return _scaled(self.start, self._scale, view)


@dataclass(frozen=True)
class OpenLoop(_Described):
    """Follows given plans, one a decision, whatever it sees; the last one to the end.

    What is left of an agent without its feedback: its own plans, on another seed or task.
    """

    plans: tuple[LoopPlan, ...]
    name: str = "open loop"
    looks: bool = False

    @property
    def start(self) -> LoopPlan:
        return self.plans[0]

    @property
    def rolls_back(self) -> bool:
        return any(plan.rollback for plan in self.plans)

    def decide(self, view: View) -> torch.Tensor:
        last = len(self.plans) - 1
        plans = stack_plans([self.plans[min(int(decision), last)] for decision in view.decisions])
        plans[ROW["learning_rate"]] *= view.rate_scale
        return plans
