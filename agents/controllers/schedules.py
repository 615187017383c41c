"""Learning rate schedules of torch.optim and pytorch_optimizer, as controllers.

A schedule is a function of the budget spent: the library's scheduler is stepped once over a horizon, and what it did to
the learning rate (and the momentum) is looked up.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from loopwright.agents.controllers.simple import scale_rate
from loopwright.envs.loop.controller import Described, View
from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.envs.loop.extras import import_extra
from loopwright.envs.loop.observation import OBSERVATION_NAMES, Needs
from loopwright.envs.loop.plan import ROW, LoopPlan

FINAL = 0.02  # of the learning rate, what is left after a cosine
RESOLUTION = 400  # steps of a scheduler over its horizon


def make_cosine(optimizer: Optimizer, steps: int, warm_up: float = 0.0) -> LRScheduler:
    """Linear warm-up over a share of ``steps``, then a cosine down to ``FINAL``, which stays."""
    ramp = round(warm_up * steps)
    rate = optimizer.param_groups[0]["lr"]
    parts: list[LRScheduler] = [LinearLR(optimizer, FINAL, total_iters=ramp)] if ramp else []
    parts += [
        CosineAnnealingLR(optimizer, max(1, steps - ramp), eta_min=FINAL * rate),
        ConstantLR(optimizer, FINAL, total_iters=10**9),
    ]
    return SequentialLR(optimizer, parts, milestones=[ramp, steps] if ramp else [steps])


def make_one_cycle(optimizer: Optimizer, steps: int, warm_up: float = 0.3) -> LRScheduler:
    """Up over a share of ``steps`` while momentum falls, then down to next to nothing (Smith & Topin 2018)."""
    group = optimizer.param_groups[0]
    high = group["momentum"] if "momentum" in group else group["betas"][0]
    return OneCycleLR(
        optimizer, group["lr"], total_steps=steps + 1, pct_start=warm_up, base_momentum=0.9 * high, max_momentum=high
    )


def make_stable_decay(optimizer: Optimizer, steps: int, warm_up: float = 0.1, decay: float = 0.2) -> LRScheduler:
    """Shares of ``steps`` to warm up and, at the end, to cool down; constant between (Hägele et al. 2024)."""
    library = import_extra("pytorch_optimizer", "competitors")
    ramp, fall = round(warm_up * steps), round(decay * steps)
    schedule: LRScheduler = library.get_wsd_schedule(optimizer, ramp, steps - ramp - fall, fall, min_lr_ratio=FINAL)
    return schedule


SCHEDULES: dict[str, Callable[..., LRScheduler]] = {
    "cosine": make_cosine,
    "one-cycle": make_one_cycle,
    "warm-up-stable-decay": make_stable_decay,
}


@lru_cache(maxsize=512)
def _followed(schedule: str, momentum: float, settings: tuple[tuple[str, float], ...]) -> torch.Tensor:
    """Learning rate, as a share of the highest, and momentum after each of ``RESOLUTION`` steps: ``[2, steps + 1]``."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=momentum)
    scheduler = SCHEDULES[schedule](optimizer, RESOLUTION, **dict(settings))
    group, rows = optimizer.param_groups[0], []
    for step in range(RESOLUTION + 1):
        if step:
            optimizer.step()
            scheduler.step()
        rows.append((group["lr"], group["momentum"]))
    return torch.tensor(rows).T.contiguous()


@dataclass(frozen=True)
class Scheduled(Described):
    """Follows a schedule over ``horizon``, a share of the budget in (0, 1]; after it the rate stays.

    ``schedule`` is one of ``SCHEDULES`` and ``settings`` its arguments. Raises ``LoopwrightError`` for others.
    """

    start: LoopPlan
    schedule: str
    horizon: float = 1.0
    settings: dict[str, float] = field(default_factory=dict)
    name: str = "schedule"

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UnknownNameError("schedule", self.schedule, list(SCHEDULES))
        for name, share in {"horizon": self.horizon, **self.settings}.items():
            if not (0 <= share <= 1 and (share > 0 or name != "horizon")):
                raise LoopwrightError(f"{name} of a schedule must be a share of it, in [0, 1], got {share}")

    @cached_property
    def _table(self) -> torch.Tensor:
        return _followed(self.schedule, self.start.momentum, tuple(self.settings.items()))

    def decide(self, view: View) -> torch.Tensor:
        step = (view.spent / self.horizon * RESOLUTION).clamp(0, RESOLUTION).long()
        rate, momentum = self._table[:, step]
        plans = scale_rate(self.start, rate, view)
        plans[ROW["momentum"]] = momentum
        return plans


@dataclass
class ReduceOnPlateau(Described):
    """``torch.optim.lr_scheduler.ReduceLROnPlateau`` on the smoothed control loss, one step a decision.

    The rate is multiplied by ``factor`` when that loss has not improved by the share ``threshold`` for more than
    ``patience`` decisions.
    """

    start: LoopPlan
    factor: float = 0.5
    patience: int = 4
    threshold: float = 0.01
    name: str = "plateau"
    # init=False: what is made of it by dataclasses.replace must not step the same rules
    _rules: dict[int, ReduceLROnPlateau] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def needs(self) -> Needs:
        return Needs.CONTROL_LOSS

    def decide(self, view: View) -> torch.Tensor:
        log_loss = view.observation[:, OBSERVATION_NAMES.index("control_progress")].tolist()
        factors = []
        for lane, (loss, decision) in enumerate(zip(log_loss, view.decisions.tolist(), strict=True)):
            if decision == 0 or lane not in self._rules:
                self._rules[lane] = self._rule()
            rule = self._rules[lane]
            rule.step(loss)
            factors.append(rule.optimizer.param_groups[0]["lr"])
        return scale_rate(self.start, torch.tensor(factors), view)

    def _rule(self) -> ReduceLROnPlateau:
        held: Any = SGD([torch.zeros(1)], lr=1.0)
        # Of a logarithm, an improvement by a share is a difference.
        return ReduceLROnPlateau(
            held, factor=self.factor, patience=self.patience, threshold=-math.log1p(-self.threshold),
            threshold_mode="abs",
        )  # fmt: skip
