"""What a controller is: whatever decides the next plan. ``agents.controllers`` holds those there are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from loopwright.envs.loop.observation import Needs
from loopwright.envs.loop.plan import LoopPlan


@dataclass(frozen=True)
class View:
    """What a controller may know before a decision, for ``lanes`` runs.

    Attributes:
        observation: ``[lanes, len(OBSERVATION_NAMES)]``; 0 in all features but those of the controller's needs.
        plans: the plans so far, ``[len(PLAN_FIELDS), lanes]``; the guard's halvings of the learning rate are in them.
        spent: fraction of the budget spent, ``[lanes]``.
        decisions: decisions taken so far, ``[lanes]``.
        step_ratio: see ``KnobSet.move``.
    """

    observation: torch.Tensor
    plans: torch.Tensor
    spent: torch.Tensor
    decisions: torch.Tensor
    step_ratio: Callable[[], torch.Tensor] | None = None


@dataclass(frozen=True)
class LibraryUpdate:
    """What makes an update out of gradients: one run's optimizers, each with some of its parameters, and schedules."""

    optimizers: tuple[Optimizer, ...]
    schedules: tuple[LRScheduler, ...] = ()

    def step(self, loss: float) -> None:
        """Update the parameters by their ``grad``; some (Ali-G) want the ``loss``, the mean over the batch, besides."""
        for optimizer in self.optimizers:
            optimizer.step(lambda: loss)
        for schedule in self.schedules:
            schedule.step()

    def evaluate(self, evaluating: bool) -> None:
        """Between True and False the parameters are those to be judged, for optimizers that train with others."""
        for optimizer in self.optimizers:
            switch = getattr(optimizer, "eval" if evaluating else "train", None)
            if switch is not None:
                switch()


class OwnOptimizer(Protocol):
    """Another library's optimizer, which a controller brings along to make the updates."""

    @property
    def kind(self) -> str:
        """What it is called in price lists."""
        ...

    @property
    def flat(self) -> bool:
        """Whether all parameters may be handed over as one vector: it does not care which of them belong together."""
        ...

    def make(self, parameters: Sequence[torch.Tensor], updates: int) -> LibraryUpdate:
        """The update of one run that has so many updates at most."""
        ...


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
    def sets_rate(self) -> bool:
        """Whether it sets the learning rate without regard to the one it finds.

        The halvings of the guard are then multiplied in by whoever executes its plans.
        """
        ...

    @property
    def own_optimizer(self) -> OwnOptimizer | None:
        """What makes the updates instead of the engine; of its plans ``batch``, ``clip`` and ``average`` then count."""
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
    """A controller told apart by its own settings; unless it says otherwise it needs nothing and sets its rate."""

    @property
    def needs(self) -> Needs:
        return Needs.NOTHING

    @property
    def rolls_back(self) -> bool:
        return False

    @property
    def sets_rate(self) -> bool:
        return True

    @property
    def own_optimizer(self) -> OwnOptimizer | None:
        return None

    @property
    def fingerprint(self) -> str:
        return repr(self)
