"""Who trains a program: optimizers as people use them, and optimizers with a policy attached."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler

from loopwright.agents.controllers.optimizers import LIBRARY_OPTIMIZERS
from loopwright.agents.controllers.policy import Policy
from loopwright.agents.controllers.schedules import make_cosine
from loopwright.agents.steering.attach import attach
from loopwright.agents.steering.defaults import ADAM_POLICY, WHOLE_POLICY
from loopwright.agents.steering.optimizer import optimizer as make_plan_optimizer
from loopwright.agents.steering.steering import Steering
from loopwright.envs.loop.controller import LibraryUpdate
from loopwright.envs.loop.extras import import_extra

TUNED = "AdamW + cosine, tuned"  # what the others are measured by, and whose learning rate they start from
FACTORS = {"": 1.0, ", from 10 times its rate": 10.0, ", from a tenth of its rate": 0.1}


@dataclass(frozen=True)
class CosineSetting:
    """What tuning chooses: the cosine's learning rate and weight decay, and its warm-up as a share of the run."""

    lr: float
    weight_decay: float = 0.01
    warm_up: float = 0.0


@dataclass
class Driver:
    """What makes the updates of one run: optimizers with schedules, and perhaps a steering."""

    update: LibraryUpdate
    steering: Steering | None = None

    def step(self, loss: torch.Tensor) -> None:
        for optimizer in self.update.optimizers:
            optimizer.step()
        for schedule in self.update.schedules:
            schedule.step()
        if self.steering is not None:
            self.steering.step(loss)

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Within it the model has the weights that are to be judged."""
        self.update.evaluate(True)
        try:
            if self.steering is None:
                yield
            else:
                with self.steering.averaged():
                    yield
        finally:
            self.update.evaluate(False)


@dataclass(frozen=True)
class Launch:
    """What a driver is made from.

    Attributes:
        model, iterations, samples, batch_size: what is to be trained, for how long, on how many samples.
        setting: what tuning chose.
        policy: steers what is steered.
    """

    model: nn.Module
    iterations: int
    samples: int
    batch_size: int
    setting: CosineSetting
    policy: Policy | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())


def drive_default(launch: Launch) -> Driver:
    return Driver(LibraryUpdate((AdamW(launch.parameters),)))


def drive_cosine(launch: Launch, factor: float) -> Driver:
    setting, iterations = launch.setting, launch.iterations
    made = AdamW(launch.parameters, factor * setting.lr, weight_decay=setting.weight_decay)
    schedule: LRScheduler = make_cosine(made, iterations, warm_up=setting.warm_up)
    return Driver(LibraryUpdate((made,), (schedule,)))


def drive_schedule_free(launch: Launch) -> Driver:
    made = import_extra("pytorch_optimizer", "competitors").ScheduleFreeAdamW(launch.parameters)
    made.train()
    return Driver(LibraryUpdate((made,)))


def drive_prodigy(launch: Launch) -> Driver:
    return Driver(LibraryUpdate((import_extra("pytorch_optimizer", "competitors").Prodigy(launch.parameters),)))


def drive_muon(launch: Launch) -> Driver:
    """``torch.optim.Muon`` as it comes for the matrices, AdamW as it comes for the rest."""
    return Driver(LIBRARY_OPTIMIZERS["muon"](launch.parameters, launch.iterations, 1e-3, 1e-3, 0.95, 0.1))


def drive_attached(launch: Launch, factor: float) -> Driver:
    made = AdamW(launch.parameters, factor * launch.setting.lr)
    return Driver(LibraryUpdate((made,)), _steer(launch, made))


def drive_whole(launch: Launch, factor: float) -> Driver:
    made = make_plan_optimizer(launch.model, factor * launch.setting.lr)
    return Driver(LibraryUpdate((made,)), _steer(launch, made))


def _steer(launch: Launch, optimizer: torch.optim.Optimizer) -> Steering:
    assert launch.policy is not None
    return attach(
        optimizer,
        launch.policy,
        model=launch.model,
        steps=launch.iterations,
        samples=launch.samples,
        batch_size=launch.batch_size,
    )


RIVALS: dict[str, Callable[[Launch], Driver]] = {
    TUNED: partial(drive_cosine, factor=1.0),
    "AdamW, default": drive_default,
    "Schedule-Free AdamW": drive_schedule_free,
    "Prodigy": drive_prodigy,
    "Muon": drive_muon,
    **{f"AdamW + cosine{how}": partial(drive_cosine, factor=factor) for how, factor in FACTORS.items() if how},
    **{f"AdamW, steered{how}": partial(drive_attached, factor=factor) for how, factor in FACTORS.items()},
    **{f"loopwright.optimizer, steered{how}": partial(drive_whole, factor=factor) for how, factor in FACTORS.items()},
}
# The policies that come along for those that are steered.
STEERED_BY = {name: WHOLE_POLICY if name.startswith("loopwright.optimizer") else ADAM_POLICY
              for name in RIVALS if "steered" in name}  # fmt: skip
