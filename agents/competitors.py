"""The competitors: constants and schedules, each tuned on the training suite by the same search.

The winners are kept in ``tuned.json`` with their provenance; ``loopwright tune`` finds them again.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import qmc

from loopwright.agents.controller import Constant, Controller, Cosine, ReduceOnPlateau
from loopwright.agents.evaluation import Job, RunRecord, run_jobs
from loopwright.envs.episodes import EpisodeSettings
from loopwright.envs.plan import LoopPlan
from loopwright.inner_tasks.errors import LoopwrightError, UnknownNameError
from loopwright.inner_tasks.task import Task

TUNED_FILE = Path(__file__).with_name("tuned.json")
TUNING_SEEDS = (9_000_000, 9_000_001)


@dataclass(frozen=True)
class Competitor:
    """A kind of controller: its class, and its own settings as a function of two numbers in [0, 1]."""

    name: str
    controller: Callable[..., Controller]
    settings: Callable[[float, float], dict[str, Any]]

    def make(self, plan: LoopPlan, **settings: Any) -> Controller:
        return self.controller(plan, name=self.name, **settings)


def _pick(values: tuple[float, ...], at: float) -> float:
    return values[min(int(at * len(values)), len(values) - 1)]


_HORIZONS = (1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0)
COMPETITORS = {
    competitor.name: competitor
    for competitor in (
        Competitor("constant", Constant, lambda a, b: {}),
        Competitor("cosine", Cosine, lambda a, b: {"horizon": _pick(_HORIZONS, a)}),
        Competitor(
            "warm-up cosine",
            Cosine,
            lambda a, b: {"horizon": _pick(_HORIZONS, a), "warm_up": _pick((0.05, 0.1, 0.2), b)},
        ),
        Competitor(
            "plateau",
            ReduceOnPlateau,
            lambda a, b: {"factor": _pick((0.2, 0.5, 0.7), a), "patience": int(_pick((2, 4, 8), b))},
        ),
    )
}
DEFAULT = "default AdamW"


def candidates(kind: str, count: int) -> Iterator[Controller]:
    """``count`` quasi-random controllers of one kind: every field of the plan that a knob could move, and its own two.

    Raises UnknownNameError for a kind that is not in ``COMPETITORS``.
    """
    if kind not in COMPETITORS:
        raise UnknownNameError("competitor", kind, list(COMPETITORS))
    for point in qmc.Sobol(8, rng=np.random.default_rng(1)).random(count).tolist():
        adam = point[0] < 0.75
        low, high = (-3.0, -1.3) if adam else (-1.5, 0.6)
        plan = LoopPlan(
            optimizer="adamw" if adam else "sgd",
            learning_rate=round(10 ** (low + (high - low) * point[1]), 6),
            momentum=_pick((0.5, 0.8, 0.9, 0.95), point[2]),
            clip=_pick((math.inf, math.inf, 1.0), point[3]),
            batch=int(_pick((1, 2, 4), point[4])),
            average=_pick((0.0, 32.0, 128.0), point[5]),
        )
        competitor = COMPETITORS[kind]
        yield competitor.make(plan, **competitor.settings(point[6], point[7]))


def geometric_cost(records: list[RunRecord]) -> float:
    """Geometric mean over runs of the share of the budget that the target cost; a miss counts 1."""
    return math.exp(sum(math.log(r.cost / r.budget) for r in records) / len(records))


def tune(
    kind: str,
    count: int,
    tasks: list[Task],
    settings: EpisodeSettings,
    *,
    on_run: Callable[[RunRecord], None] | None = None,
) -> tuple[Controller, float, int]:
    """The best of ``count`` controllers of a kind on these tasks, its geometric cost, and the decisions all took."""
    tried = list(candidates(kind, count))
    each = len(tasks) * len(TUNING_SEEDS)
    jobs = [Job(controller, task, seed) for controller in tried for task in tasks for seed in TUNING_SEEDS]
    records = run_jobs(jobs, settings, on_run=on_run)
    costs = [geometric_cost(records[number * each : (number + 1) * each]) for number in range(count)]
    best = min(range(count), key=costs.__getitem__)
    spent = sum(record.cost for record in records) / (settings.ticks_per_decision * settings.microbatch)
    return tried[best], costs[best], round(spent)


def describe(controller: Controller) -> dict[str, Any]:
    """A controller's settings as JSON values."""
    own = {
        key: value
        for key, value in vars(controller).items()
        if key not in ("start", "name", "looks") and not key.startswith("_")
    }
    return {"plan": controller.start.as_json(), **own}


def from_description(name: str, description: dict[str, Any]) -> Controller:
    """The inverse of ``describe``."""
    own = dict(description)
    return COMPETITORS[name].make(LoopPlan.from_json(own.pop("plan")), **own)


def tuned_competitors() -> list[Controller]:
    """PyTorch's default AdamW and the stored winner of each kind."""
    if not TUNED_FILE.exists():
        raise LoopwrightError(f"{TUNED_FILE.name} is missing; run: loopwright tune")
    stored = json.loads(TUNED_FILE.read_text())
    default = Constant(replace(LoopPlan(), weight_decay=0.01), name=DEFAULT)
    return [default, *(from_description(name, entry["settings"]) for name, entry in stored["competitors"].items())]


def starting_plan(name: str) -> LoopPlan:
    """The plan to start from: "tuned" is the stored best constant, "default" PyTorch's own AdamW settings."""
    if name == "default":
        return LoopPlan()
    if name == "tuned":
        return next(controller.start for controller in tuned_competitors() if controller.name == "constant")
    raise UnknownNameError("starting plan", name, ["tuned", "default"])
