"""The competitors: what people would use instead, and over what each is searched.

``loopwright tune`` searches on the training suite, all by the same rule; ``tuned`` holds the winners.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from loopwright.agents.controllers.optimizers import Optimized
from loopwright.agents.controllers.schedules import ReduceOnPlateau, Scheduled
from loopwright.agents.controllers.simple import Constant
from loopwright.agents.controllers.tuned import get_starting_plan
from loopwright.envs.loop.controller import Controller
from loopwright.envs.loop.errors import UnknownNameError
from loopwright.envs.loop.knobs import CLIP_OFF
from loopwright.envs.loop.plan import CHOICES, LoopPlan

Value = TypeVar("Value")


def pick_at(at: float, *values: Value) -> Value:
    """The one of the values that lies at ``at`` in [0, 1)."""
    return values[min(int(at * len(values)), len(values) - 1)]


def power_at(at: float, low: float, high: float) -> float:
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
    second_momentum: float


# Half of the plans are AdamW's; what the rules share one learning rate for has one range.
RULES = ("adamw", "adamw", "adamw", "adamw", "sinkgd", "sinkgd", "muon", "sgd")
SECOND_MOMENTA = (0.8, 0.9, 0.95, 0.99, 0.999)
RATES = {"sgd": (-1.5, 0.9), "adamw": (-3.2, -0.8), "sinkgd": (-3.2, -0.8), "muon": (-3.2, -0.8)}  # log10


def make_plan(at: PlanPoint) -> LoopPlan:
    """Every field of the plan that an ordinary training script sets, and all four update rules."""
    rule = pick_at(at.optimizer, *RULES)
    return LoopPlan(
        optimizer=rule,
        learning_rate=power_at(at.learning_rate, *RATES[rule]),
        momentum=pick_at(at.momentum, 0.0, 0.5, 0.8, 0.9, 0.95),
        second_momentum=pick_at(at.second_momentum, *SECOND_MOMENTA),
        clip=pick_at(at.clip, math.inf, math.inf, 1.0),
        batch=int(pick_at(at.batch, 1, 2, 4)),
        average=pick_at(at.average, 0.0, 8.0, 32.0, 128.0),
        weight_decay=pick_at(at.weight_decay, 0.0, 0.01, 0.1, 0.5),
    )


def make_plain_plan(at: PlanPoint) -> LoopPlan:
    """AdamW without clipping and averaging."""
    rate = power_at(at.finer_rate, *RATES["adamw"])
    return replace(make_plan(at), optimizer="adamw", learning_rate=rate, clip=math.inf, average=0.0)


def make_averaged_plan(at: PlanPoint) -> LoopPlan:
    return replace(make_plain_plan(at), average=pick_at(at.finer, 8.0, 16.0, 32.0, 64.0, 128.0))


def make_clipped_plan(at: PlanPoint) -> LoopPlan:
    return replace(make_plain_plan(at), clip=power_at(at.finer, -1.5, 0.7))


def make_clipped_sgd_plan(at: PlanPoint) -> LoopPlan:
    """SGD with momentum, at any threshold, or none."""
    rate, clip = power_at(at.learning_rate, *RATES["sgd"]), power_at(at.clip, -1.5, 1.8)
    return replace(make_plan(at), optimizer="sgd", learning_rate=rate, clip=clip if clip < 2**CLIP_OFF else math.inf)


def make_loop_plan(at: PlanPoint) -> LoopPlan:
    """The best constant's plan but for the structure of the loop, of which about half is as it is there."""
    return replace(
        get_starting_plan("tuned"),
        batch=int(pick_at(at.batch, 1, 1, 2, 4)),
        average=pick_at(at.average, 0.0, 8.0, 8.0, 32.0, 128.0),
        optimizer=pick_at(at.optimizer, "adamw", "adamw", "adamw", "sinkgd", "muon"),  # its rate is no rate for sgd
        depth=pick_at(at.momentum, 1.0, 1.0, 1.0, 0.75, 0.5),
        keep=pick_at(at.clip, 1.0, 1.0, 1.0, 0.5, 0.25),
        order=pick_at(at.weight_decay, "shuffled", "shuffled", *CHOICES["order"]),
        echo=int(pick_at(at.second_momentum, 1, 1, 1, 2, 4)),
        sweep=pick_at(at.finer, "joint", "joint", *CHOICES["sweep"]),
    )


def make_evaluated_plan(at: PlanPoint) -> LoopPlan:
    """What of a plan an optimizer of another library leaves open."""
    return LoopPlan(batch=int(pick_at(at.batch, 1, 2, 4)), average=pick_at(at.average, 0.0, 8.0, 32.0, 128.0))


class Coordinates:
    """A point of another unit cube, read coordinate by coordinate, for what is not in the plan."""

    DIMENSIONS = 6

    def __init__(self, coordinates: list[float]) -> None:
        self._left = iter(coordinates)

    def pick(self, *values: float) -> float:
        return pick_at(next(self._left), *values)

    def power(self, low: float, high: float) -> float:
        return power_at(next(self._left), low, high)


def _horizon(point: Coordinates) -> float:
    return point.pick(1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0)


def _momentum(point: Coordinates) -> float:
    return point.pick(0.0, 0.5, 0.8, 0.9, 0.95)


def _second(point: Coordinates) -> float:
    return point.pick(*SECOND_MOMENTA)


def _warm_up(point: Coordinates) -> dict[str, float]:
    return {"warm_up": point.pick(0.0, 0.0, 0.05, 0.1, 0.2)}


def _decay(point: Coordinates) -> float:
    return point.pick(0.0, 0.01, 0.1, 0.5)


@dataclass(frozen=True)
class Competitor:
    """A kind of controller, and what a point of the unit cube makes of it.

    Attributes:
        name: what tables call it.
        group: "fixed default", "self-tuning" or "strong optimizer"; "same knobs" for ``RIVALS_OF_FEW``.
        controller: its class.
        settings: the class's arguments other than the plan.
        plan: the plan it starts from.
        near: half of its candidates start from the best constant's plan instead, at another learning rate: a schedule
            is not to lose because its search happened upon no good plan.
        configurations: how many candidates are tried.
        suite: the suite whose tasks they are tried on.
        first: the starting plan that is the first candidate.
    """

    name: str
    group: str
    controller: Callable[..., Controller]
    settings: Callable[[Coordinates], dict[str, Any]] = lambda point: {}
    plan: Callable[[PlanPoint], LoopPlan] = make_plan
    near: bool = False
    configurations: int = 128
    suite: str = "train"
    first: str = ""

    def candidates(self, count: int, best: LoopPlan | None = None) -> Iterator[Controller]:
        """``count`` quasi-random controllers; ``best`` is the best constant's plan, for one that starts ``near`` it."""
        from scipy.stats import qmc  # slow to load, and only to search

        plans = qmc.Sobol(len(PlanPoint._fields), rng=np.random.default_rng(1)).random(count).tolist()
        others = qmc.Sobol(Coordinates.DIMENSIONS, rng=np.random.default_rng(2)).random(count).tolist()
        if self.near and best is None:
            best = get_starting_plan("tuned")
        for number, (coordinates, own) in enumerate(zip(plans, others, strict=True)):
            at = PlanPoint(*coordinates)
            plan = self.plan(at)
            if self.first and number == 0:
                plan = get_starting_plan(self.first)
            if self.near and best is not None and number % 2:
                plan = replace(best, learning_rate=best.learning_rate * power_at(at.finer_rate, -0.5, 1.0))
            yield self.controller(plan, name=self.name, **self.settings(Coordinates(own)))


def _add_optimizer(
    name: str, group: str, kind: str, settings: Callable[[Coordinates], dict[str, Any]], **options: Any
) -> Competitor:
    return Competitor(
        name, group, Optimized, lambda point: {"kind": kind, "settings": settings(point)},
        **{"plan": make_evaluated_plan, **options},
    )  # fmt: skip


def _add_schedule(
    name: str, kind: str, settings: Callable[[Coordinates], dict[str, float]], **options: Any
) -> Competitor:
    return Competitor(
        name, controller=Scheduled,
        settings=lambda point: {"schedule": kind, "horizon": _horizon(point), "settings": settings(point)},
        **{"group": "fixed default", "near": True, **options},
    )  # fmt: skip


COMPETITORS = {
    competitor.name: competitor
    for competitor in (
        Competitor("constant", "fixed default", Constant),
        Competitor("AdamW", "fixed default", Constant, plan=make_plain_plan),
        Competitor("averaged AdamW", "fixed default", Constant, plan=make_averaged_plan),
        Competitor("clipped AdamW", "fixed default", Constant, plan=make_clipped_plan),
        _add_schedule("warm-up cosine", "cosine", _warm_up),
        _add_schedule("one-cycle", "one-cycle", lambda p: {"warm_up": p.pick(0.1, 0.2, 0.3, 0.4)}),
        _add_schedule(
            "warm-up, stable, decay", "warm-up-stable-decay",
            lambda p: {"warm_up": p.pick(0.0, 0.05, 0.1), "decay": p.pick(0.1, 0.2, 0.4)},
        ),
        Competitor(
            "plateau", "fixed default", ReduceOnPlateau,
            lambda p: {"factor": p.pick(0.2, 0.5, 0.7), "patience": int(p.pick(2, 4, 8))}, near=True,
        ),
        _add_optimizer(
            "NAdamW cosine", "fixed default", "nadamw-cosine",
            lambda p: {"lr": p.power(-3.0, -0.8), "momentum": _momentum(p), "weight_decay": _decay(p),
                       "horizon": _horizon(p), "second_momentum": _second(p)},
        ),
        _add_optimizer(
            "Schedule-Free AdamW", "self-tuning", "schedule-free",
            lambda p: {"lr": p.power(-3.0, -0.6), "momentum": p.pick(0.8, 0.9, 0.95), "weight_decay": _decay(p),
                       "warm_up": p.pick(0.0, 0.02, 0.05), "second_momentum": _second(p)},
            plan=lambda at: replace(make_evaluated_plan(at), average=0.0),
        ),
        _add_optimizer(
            "Prodigy", "self-tuning", "prodigy",
            lambda p: {"scale": p.power(-1.0, 1.0), "momentum": _momentum(p), "weight_decay": _decay(p),
                       "first": p.power(-6.0, -2.0), "second_momentum": _second(p)},
        ),
        _add_optimizer(
            "D-Adaptation", "self-tuning", "d-adaptation",
            lambda p: {"scale": p.power(-1.0, 1.0), "momentum": _momentum(p), "weight_decay": _decay(p),
                       "first": p.power(-6.0, -2.0), "second_momentum": _second(p)},
        ),
        _add_optimizer(
            "Ali-G", "self-tuning", "ali-g",
            lambda p: {"max_lr": p.power(-2.5, 1.0), "momentum": p.pick(0.0, 0.5, 0.9)},
        ),
        _add_optimizer(
            "PILOT", "self-tuning", "pilot",
            lambda p: {"lr": p.power(-3.2, -0.8), "momentum": _momentum(p), "weight_decay": _decay(p),
                       "second_momentum": _second(p)},
        ),
        _add_optimizer(
            "Muon", "strong optimizer", "muon",
            lambda p: {"lr": p.power(-2.8, -0.3), "adamw_lr": p.power(-3.0, -1.0), "momentum": _momentum(p),
                       "weight_decay": _decay(p), "second_momentum": _second(p)},
        ),
        _add_optimizer(
            "NorMuon", "strong optimizer", "normuon",
            lambda p: {"lr": p.power(-3.2, -0.8), "adamw_lr": p.power(-3.0, -1.0), "momentum": _momentum(p),
                       "weight_decay": _decay(p), "second_momentum": _second(p)},
        ),
        _add_optimizer(
            "SOAP", "strong optimizer", "soap",
            lambda p: {"lr": p.power(-3.0, -1.0), "momentum": _momentum(p), "weight_decay": _decay(p),
                       "every": p.pick(5, 10), "second_momentum": _second(p)},
        ),
    )
}  # fmt: skip


# What policies of a few knobs are judged beside: the best constants and schedules of the same knobs. Not among "all";
# those of clipping and of the loop are tuned under the list "measured" alone.
RIVALS_OF_FEW = {
    competitor.name: competitor
    for competitor in (
        Competitor("clipped SGD", "same knobs", Constant, plan=make_clipped_sgd_plan, suite="spikes"),
        Competitor("constant loop", "same knobs", Constant, plan=make_loop_plan, first="tuned"),
        _add_schedule(
            "AdamW cosine", "cosine", _warm_up,
            group="same knobs", plan=make_plain_plan, near=False,
        ),
    )
}  # fmt: skip


TUNABLE = COMPETITORS | RIVALS_OF_FEW


def find_competitor(name: str) -> Competitor:
    """The competitor of that name. Raises ``UnknownNameError`` otherwise."""
    if name not in TUNABLE:
        raise UnknownNameError("competitor", name, list(TUNABLE))
    return TUNABLE[name]
