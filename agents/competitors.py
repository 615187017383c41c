"""The competitors: what people would use instead, each tuned on the training suite by the same search.

The winners are kept in ``tuned.json`` with their provenance; ``loopwright tune`` finds them again.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import qmc

from loopwright.agents.controller import Constant, Controller
from loopwright.agents.evaluation import Job, run_jobs
from loopwright.agents.optimizers import Optimized
from loopwright.agents.results import RunRecord
from loopwright.agents.schedules import ReduceOnPlateau, Scheduled
from loopwright.agents.statistics import geometric_share
from loopwright.envs.episodes import EpisodeSettings
from loopwright.envs.plan import LoopPlan
from loopwright.inner_tasks.errors import LoopwrightError, UnknownNameError
from loopwright.inner_tasks.task import Task

TUNED_FILE = Path(__file__).with_name("tuned.json")
TUNING_SEEDS = (9_000_000, 9_000_001)
DEFAULT = "default AdamW"


def pick(at: float, *values: float) -> float:
    """The one of the values that lies at ``at`` in [0, 1)."""
    return values[min(int(at * len(values)), len(values) - 1)]


def power(at: float, low: float, high: float) -> float:
    """10 to the power that lies at ``at`` between the two, to five digits."""
    return float(f"{10 ** (low + (high - low) * at):.5g}")


class PlanPoint(NamedTuple):
    """A point of the unit cube, a coordinate for each field of a plan that a training script sets, and two more."""

    optimizer: float
    learning_rate: float
    momentum: float
    clip: float
    batch: float
    average: float
    finer_rate: float
    finer: float
    weight_decay: float


def any_plan(at: PlanPoint) -> LoopPlan:
    """Every field of the plan that an ordinary training script sets."""
    adam = at.optimizer < 0.75
    return LoopPlan(
        optimizer="adamw" if adam else "sgd",
        learning_rate=power(at.learning_rate, -3.0, -1.3) if adam else power(at.learning_rate, -1.5, 0.6),
        momentum=pick(at.momentum, 0.5, 0.8, 0.9, 0.95),
        clip=pick(at.clip, math.inf, math.inf, 1.0),
        batch=int(pick(at.batch, 1, 2, 4)),
        average=pick(at.average, 0.0, 32.0, 128.0),
        weight_decay=pick(at.weight_decay, 0.0, 0.01, 0.1, 0.5),
    )


def plain_plan(at: PlanPoint) -> LoopPlan:
    """AdamW without clipping and averaging."""
    rate = power(at.finer_rate, -3.0, -1.3)
    return replace(any_plan(at), optimizer="adamw", learning_rate=rate, clip=math.inf, average=0.0)


def averaged_plan(at: PlanPoint) -> LoopPlan:
    return replace(plain_plan(at), average=pick(at.finer, 16.0, 32.0, 64.0, 128.0))


def clipped_plan(at: PlanPoint) -> LoopPlan:
    return replace(plain_plan(at), clip=power(at.finer, -1.5, 0.7))


def evaluated_plan(at: PlanPoint) -> LoopPlan:
    """What of a plan an optimizer of another library leaves open."""
    return LoopPlan(batch=int(pick(at.batch, 1, 2, 4)), average=pick(at.average, 0.0, 32.0, 128.0))


class Point:
    """A point of another unit cube, read coordinate by coordinate, for what is not in the plan."""

    DIMENSIONS = 5

    def __init__(self, coordinates: list[float]) -> None:
        self._left = iter(coordinates)

    def pick(self, *values: float) -> float:
        return pick(next(self._left), *values)

    def power(self, low: float, high: float) -> float:
        return power(next(self._left), low, high)


def _horizon(point: Point) -> float:
    return point.pick(1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0)


def _momentum(point: Point) -> float:
    return point.pick(0.5, 0.8, 0.9, 0.95)


def _decay(point: Point) -> float:
    return point.pick(0.0, 0.01, 0.1, 0.5)


@dataclass(frozen=True)
class Competitor:
    """A kind of controller, and what a point of the unit cube makes of it.

    Attributes:
        name: what tables call it.
        group: "fixed default", "self-tuning" or "strong optimizer".
        controller: its class.
        settings: the class's arguments other than the plan.
        plan: the plan it starts from.
        near: half of its candidates start from the best constant's plan instead, at another learning rate: a schedule
            is not to lose because its search happened upon no good plan.
        configurations: how many candidates are tried.
    """

    name: str
    group: str
    controller: Callable[..., Controller]
    settings: Callable[[Point], dict[str, Any]] = lambda point: {}
    plan: Callable[[PlanPoint], LoopPlan] = any_plan
    near: bool = False
    configurations: int = 64

    def candidates(self, count: int) -> Iterator[Controller]:
        """``count`` quasi-random controllers."""
        plans = qmc.Sobol(len(PlanPoint._fields), rng=np.random.default_rng(1)).random(count).tolist()
        others = qmc.Sobol(Point.DIMENSIONS, rng=np.random.default_rng(2)).random(count).tolist()
        best = starting_plan("tuned") if self.near else None
        for number, (coordinates, own) in enumerate(zip(plans, others, strict=True)):
            at = PlanPoint(*coordinates)
            plan = self.plan(at)
            if best is not None and number % 2:
                plan = replace(best, learning_rate=best.learning_rate * power(at.finer_rate, -0.5, 1.0))
            yield self.controller(plan, name=self.name, **self.settings(Point(own)))


def _optimizer(
    name: str, group: str, kind: str, settings: Callable[[Point], dict[str, Any]], **options: Any
) -> Competitor:
    return Competitor(
        name, group, Optimized, lambda point: {"kind": kind, "settings": settings(point)},
        **{"plan": evaluated_plan, "configurations": 16, **options},
    )  # fmt: skip


def _schedule(name: str, kind: str, settings: Callable[[Point], dict[str, float]]) -> Competitor:
    return Competitor(
        name, "fixed default", Scheduled,
        lambda point: {"schedule": kind, "horizon": _horizon(point), "settings": settings(point)}, near=True,
    )  # fmt: skip


COMPETITORS = {
    competitor.name: competitor
    for competitor in (
        Competitor("constant", "fixed default", Constant, configurations=128),
        Competitor("AdamW", "fixed default", Constant, plan=plain_plan),
        Competitor("averaged AdamW", "fixed default", Constant, plan=averaged_plan),
        Competitor("clipped AdamW", "fixed default", Constant, plan=clipped_plan),
        _schedule("warm-up cosine", "cosine", lambda p: {"warm_up": p.pick(0.0, 0.0, 0.05, 0.1, 0.2)}),
        _schedule("one-cycle", "one-cycle", lambda p: {"warm_up": p.pick(0.1, 0.2, 0.3, 0.4)}),
        _schedule(
            "warm-up, stable, decay", "warm-up-stable-decay",
            lambda p: {"warm_up": p.pick(0.0, 0.05, 0.1), "decay": p.pick(0.1, 0.2, 0.4)},
        ),
        Competitor(
            "plateau", "fixed default", ReduceOnPlateau,
            lambda p: {"factor": p.pick(0.2, 0.5, 0.7), "patience": int(p.pick(2, 4, 8))}, near=True,
        ),
        _optimizer(
            "NAdamW cosine", "fixed default", "nadamw-cosine",
            lambda p: {"lr": p.power(-2.8, -1.3), "momentum": _momentum(p), "weight_decay": _decay(p),
                       "horizon": _horizon(p)},
            configurations=32,
        ),
        _optimizer(
            "Schedule-Free AdamW", "self-tuning", "schedule-free",
            lambda p: {"lr": p.power(-2.8, -1.0), "momentum": p.pick(0.8, 0.9, 0.95), "weight_decay": _decay(p),
                       "warm_up": p.pick(0.0, 0.02, 0.05)},
            plan=lambda at: replace(evaluated_plan(at), average=0.0),
        ),
        _optimizer(
            "Prodigy", "self-tuning", "prodigy",
            lambda p: {"scale": p.power(-0.7, 0.7), "momentum": _momentum(p), "weight_decay": _decay(p),
                       "first": p.power(-6.0, -3.0)},
        ),
        _optimizer(
            "D-Adaptation", "self-tuning", "d-adaptation",
            lambda p: {"scale": p.power(-0.7, 0.5), "momentum": _momentum(p), "weight_decay": _decay(p),
                       "first": p.power(-6.0, -3.0)},
        ),
        _optimizer(
            "Ali-G", "self-tuning", "ali-g",
            lambda p: {"max_lr": p.power(-2.0, 0.5), "momentum": p.pick(0.0, 0.5, 0.9)},
        ),
        _optimizer(
            "Muon", "strong optimizer", "muon",
            lambda p: {"lr": p.power(-2.5, -0.7), "adamw_lr": p.power(-2.8, -1.3), "momentum": p.pick(0.5, 0.8, 0.95),
                       "weight_decay": _decay(p)},
        ),
        _optimizer(
            "SOAP", "strong optimizer", "soap",
            lambda p: {"lr": p.power(-2.8, -1.3), "momentum": _momentum(p), "weight_decay": _decay(p),
                       "every": p.pick(5, 10)},
        ),
    )
}  # fmt: skip
TYPES: dict[str, Callable[..., Controller]] = {
    kind.__name__: kind for kind in (Constant, Scheduled, ReduceOnPlateau, Optimized)
}


def find_competitor(name: str) -> Competitor:
    """The competitor of that name. Raises ``UnknownNameError`` otherwise."""
    if name not in COMPETITORS:
        raise UnknownNameError("competitor", name, list(COMPETITORS))
    return COMPETITORS[name]


def tune(
    tried: list[Controller],
    tasks: list[Task],
    settings: EpisodeSettings,
    *,
    on_run: Callable[[RunRecord], None] | None = None,
) -> tuple[Controller, float, int]:
    """The best of the controllers on these tasks, its geometric cost, and the decisions all of them took."""
    each = len(tasks) * len(TUNING_SEEDS)
    jobs = [Job(controller, task, seed) for controller in tried for task in tasks for seed in TUNING_SEEDS]
    records = run_jobs(jobs, settings, on_run=on_run)
    costs = [geometric_share(records[number * each : (number + 1) * each]) for number in range(len(tried))]
    best = min(range(len(tried)), key=costs.__getitem__)
    spent = sum(record.cost for record in records) / (settings.ticks_per_decision * settings.microbatch)
    return tried[best], costs[best], round(spent)


def describe(controller: Any) -> dict[str, Any]:
    """A competitor's controller as JSON values."""
    own = {
        field.name: getattr(controller, field.name) for field in fields(controller) if not field.name.startswith("_")
    }
    own.pop("name")
    return {"type": type(controller).__name__, **own, "start": controller.start.as_json()}


def from_description(name: str, description: dict[str, Any]) -> Controller:
    """The inverse of ``describe``."""
    own = dict(description)
    return TYPES[own.pop("type")](LoopPlan.from_json(own.pop("start")), name=name, **own)


def stored() -> dict[str, dict[str, Any]]:
    """What ``loopwright tune`` found, by the competitor's name, in the order of ``COMPETITORS``."""
    if not TUNED_FILE.exists():
        raise LoopwrightError(f"{TUNED_FILE.name} is missing; run: loopwright tune")
    entries: dict[str, dict[str, Any]] = json.loads(TUNED_FILE.read_text())["competitors"]
    return entries


def default_adamw() -> Controller:
    """PyTorch's own settings, not tuned."""
    return Constant(replace(LoopPlan(), weight_decay=0.01), name=DEFAULT)


def tuned_competitors(names: list[str] | None = None) -> list[Controller]:
    """PyTorch's default AdamW and the stored winners, or those of the ``names`` only."""
    entries = stored()
    for name in names or []:
        find_competitor(name)
    chosen = [name for name in entries if names is None or name in names]
    return [default_adamw(), *(from_description(name, entries[name]["settings"]) for name in chosen)]


def best_single(names: Collection[str]) -> str:
    """Of these methods, the competitor that did best where all were tuned, on the training suite.

    ``DEFAULT`` where none of them was tuned.
    """
    shares = {name: float(entry["geometric_budget_share"]) for name, entry in stored().items() if name in names}
    return min(shares, key=shares.__getitem__, default=DEFAULT)


def starting_plan(name: str) -> LoopPlan:
    """The plan to start from: "tuned" is the stored best constant, "default" PyTorch's own AdamW settings."""
    if name == "default":
        return LoopPlan()
    if name == "tuned":
        return from_description("constant", stored()["constant"]["settings"]).start
    raise UnknownNameError("starting plan", name, ["tuned", "default"])
