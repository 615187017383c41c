"""Calibration: what target a task deserves, and what its best static configuration pays to reach it.

64 quasi-random static configurations (optimizer x learning rate x momentum x weight decay x warm-up x schedule horizon)
train side by side. The best one runs again on 20 fresh seeds, and the target is the loss that 80 % of those runs hold
for two evaluations in a row: a level that the best configuration reaches dependably, not once by luck. C* is the
median cost of reaching it. The target split is the harness's: no controller takes part here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import qmc

from loopwright.envs.engine.lanes import Lanes
from loopwright.envs.episode.hold_rule import hold_losses
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.errors import UncalibratedTaskError
from loopwright.envs.loop.plan import ROW, LoopPlan, stack_plans
from loopwright.inner_tasks.losses import compute_guessing_loss
from loopwright.inner_tasks.suites import SEARCHED
from loopwright.inner_tasks.task import Calibration, Task

CONFIGURATIONS = 64
RERUNS = 20
# The searches there have been: what they drew second momentum from, and AdamW's learning rates between (log10).
SEARCHES: dict[int, tuple[tuple[float, ...], tuple[float, float]]] = {
    1: ((0.999,), (-3.5, -1.3)),
    2: ((0.9, 0.95, 0.99, 0.999), (-3.5, -1.0)),
}
NEWEST = max(SEARCHES)
CURVE_POINTS = 24  # of a stored curve, at most
SEARCH_SEED, RERUN_SEED = 7_000_000, 8_000_000  # apart from each other and from every seed a run is judged on
HORIZONS = (0.25, 0.5, 0.75, 1.0)
WARM_UPS = (0.0, 0.1)
EASY_SHARE = 0.1  # a task that default AdamW solves in less than this share of the budget tells nothing
SOLVED = 1e-3  # of the loss of a constant guess: a target lies no lower, where only rounding errors differ
LEARNT = 0.98  # of the same: a target that lies above this asks for nothing


@dataclass(frozen=True)
class StaticConfiguration:
    """A plan with a cosine schedule: linear warm-up, then decay to zero at ``horizon`` of the decisions."""

    plan: LoopPlan
    warm_up: float
    horizon: float

    def as_json(self) -> dict[str, Any]:
        return {**self.plan.as_json(), "warm_up": self.warm_up, "horizon": self.horizon}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "StaticConfiguration":
        """The inverse of ``as_json``."""
        plan = dict(values)
        warm_up, horizon = plan.pop("warm_up"), plan.pop("horizon")
        return cls(LoopPlan.from_json(plan), warm_up, horizon)

    def rate_factor(self, decision: int, decisions: int) -> float:
        """What the learning rate is multiplied by during ``decision`` of ``decisions``."""
        end = max(1.0, self.horizon * decisions)
        ramp = self.warm_up * end
        at = decision + 0.5
        if at < ramp:
            return at / ramp
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (at - ramp) / (end - ramp))))


def list_configurations(search: int = NEWEST) -> list[StaticConfiguration]:
    """The quasi-random (Sobol) configurations of a search, the same for every task."""
    second_momenta, adam_rates = SEARCHES[search]
    drawn = 7 if len(second_momenta) > 1 else 6
    points = qmc.Sobol(drawn, rng=np.random.default_rng(0)).random(CONFIGURATIONS)
    found = []
    for kind, rate, momentum, decay, warm_up, horizon, *others in points.tolist():
        second = others[0] if others else 0.0
        adam = kind < 0.6
        low, high = adam_rates if adam else (-1.5, 0.8)
        plan = LoopPlan(
            optimizer="adamw" if adam else "sgd",
            learning_rate=10.0 ** (low + (high - low) * rate),
            momentum=1 - 10.0 ** (-0.3 - 1.4 * momentum),
            second_momentum=second_momenta[int(second * len(second_momenta))],
            weight_decay=0.0 if decay < 0.5 else 10.0 ** (-4 + 6 * (decay - 0.5)),
        )
        found.append(
            StaticConfiguration(plan, WARM_UPS[int(warm_up * len(WARM_UPS))], HORIZONS[int(horizon * len(HORIZONS))])
        )
    return found


class Calibrator:
    """Calibrates tasks of one shape; keeps its lanes (and their compiled tick) between tasks.

    Args:
        template: any task of the shape.
        settings: the settings the targets will be used with.
        search: its number in ``SEARCHES``.

    Attributes:
        decisions: length of the search in decisions.
    """

    def __init__(
        self, template: Task, settings: EpisodeSettings, decisions: int = SEARCHED, search: int = NEWEST
    ) -> None:
        self.settings, self.decisions, self.search_number = settings, decisions, search
        self.lanes = Lanes(
            template,
            CONFIGURATIONS,
            microbatch=settings.microbatch,
            compile=settings.compiles(CONFIGURATIONS),
            device=settings.device,
        )
        self.space = list_configurations(search)

    def train(self, task: Task, configurations: list[StaticConfiguration], first_seed: int) -> torch.Tensor:
        """Target-split losses ``[CONFIGURATIONS, decisions]``, each lane with a seed of its own."""
        lanes = range(CONFIGURATIONS)
        self.lanes.load(lanes, [task] * CONFIGURATIONS, [first_seed + lane for lane in lanes])
        plans = stack_plans([c.plan for c in configurations])
        rate = plans[ROW["learning_rate"]].clone()
        curves = []
        for decision in range(self.decisions):
            factor = torch.tensor([c.rate_factor(decision, self.decisions) for c in configurations])
            plans[ROW["learning_rate"]] = rate * factor
            self.lanes.run(plans.to(self.lanes.device), self.settings.ticks_per_decision)
            curves.append(self.lanes.evaluate("target")[0].cpu())
        return torch.nan_to_num(torch.stack(curves, dim=1), nan=math.inf)

    def search(self, task: Task) -> tuple[int, float]:
        """Which configuration of the search space holds the lowest loss, and what the median one ends with."""
        losses = self.train(task, self.space, SEARCH_SEED)
        return int(hold_losses(losses).amin(dim=1).argmin()), float(losses[:, -1].quantile(0.5, interpolation="lower"))

    def calibrate(self, task: Task) -> tuple[Calibration | None, str]:
        """The calibration and the winning configuration in words; or None and the reason for dropping the task."""
        best_at, easier = self.search(task)
        winner = self.space[best_at]
        default = StaticConfiguration(LoopPlan(), 0.0, math.inf)
        again = [winner] * RERUNS + [default] * (CONFIGURATIONS - RERUNS)
        curves = self.train(task, again, RERUN_SEED)
        rerun, plain = hold_losses(curves[:RERUNS]), hold_losses(curves[RERUNS:])
        best = rerun.amin(dim=1)
        target = float(best.quantile(0.8, interpolation="higher"))
        if not math.isfinite(target):
            return None, "the best static configuration diverges in more than a fifth of its re-runs"
        guess = compute_guessing_loss(task.loss, task.target.labels)
        target = max(target, SOLVED * guess)
        if task.loss == "cross-entropy" and target > LEARNT * guess:
            return None, f"out of reach: the best static configuration gets to {target:.3g}, a guess to {guess:.3g}"
        per_decision = self.settings.ticks_per_decision * self.settings.microbatch
        cost = float(np.median(_find_first(rerun, target))) * per_decision
        easy = float(np.median(_find_first(plain, target))) * per_decision
        if easy < EASY_SHARE * self.settings.budget_factor * cost:
            return None, f"too easy: default AdamW reaches the target in {easy / cost:.2f} C*"
        if cost < 6 * per_decision:
            return None, f"too short: C* is only {cost / per_decision:.0f} decisions"
        points = self._curve(curves[:RERUNS], target, cost, per_decision)
        if len(points) < 2:
            return None, "flat: the best static configuration makes no progress before its target"
        described = f"{winner.plan} warm_up={winner.warm_up} horizon={winner.horizon}"
        calibration = Calibration(
            target, cost, tuple(points), winner.as_json(), max(easier, target), self.decisions, self.search_number
        )
        return calibration, described

    @staticmethod
    def _curve(losses: torch.Tensor, target: float, cost: float, per_decision: int) -> list[tuple[float, float]]:
        running = losses.cummin(dim=1).values.median(dim=0).values.tolist()
        points: list[tuple[float, float]] = []
        for decision, loss in enumerate((round(value, 6) for value in running), start=1):
            geq = float(decision * per_decision)
            if geq < cost and loss > target and (not points or loss < points[-1][1]):
                points.append((geq, loss))
        if len(points) >= CURVE_POINTS:
            kept = np.unique(np.linspace(0, len(points) - 1, CURVE_POINTS - 1).round().astype(int))
            points = [points[at] for at in kept]
        return [*points, (cost, target)]


def _find_first(held_losses: torch.Tensor, target: float) -> list[float]:
    """The decision (from 1) after which each lane first holds the target; infinity where it never does."""
    below = held_losses <= target
    first = below.float().argmax(dim=1).add(1).double()
    return torch.where(below.any(dim=1), first, math.inf).tolist()


def calibrate(task: Task, settings: EpisodeSettings | None = None) -> Task:
    """The task with a freshly calibrated target. Raises ``UncalibratedTaskError`` with the reason if it has none."""
    calibration, why = Calibrator(task, settings or EpisodeSettings()).calibrate(task)
    if calibration is None:
        raise UncalibratedTaskError(f"task {task.name} cannot be calibrated: {why}")
    return task.with_calibration(calibration)
