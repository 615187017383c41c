"""Cost ratios between two methods, with bootstrap intervals that resample tasks and, within a task, seeds."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loopwright.agents.evaluation import RunRecord
from loopwright.inner_tasks.errors import LoopwrightError


@dataclass(frozen=True)
class Ratio:
    """Geometric mean over tasks of cost(method) / cost(against); below 1 is better. ``low`` and ``high``: 95 %."""

    suite: str
    method: str
    against: str
    unit: str
    point: float
    low: float
    high: float
    hit_rate: float
    against_hit_rate: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def paired_log_ratios(records: Sequence[RunRecord], method: str, against: str) -> npt.NDArray[np.float64]:
    """log(cost ratio) as ``[tasks, seeds]``. Raises ``LoopwrightError`` unless both methods made the same runs."""
    costs = {(r.method, r.task, r.seed): r.cost for r in records}
    tasks = sorted({r.task for r in records if r.method == method})
    seeds = sorted({r.seed for r in records if r.method == method})
    try:
        rows = [[math.log(costs[method, t, s] / costs[against, t, s]) for s in seeds] for t in tasks]
    except KeyError as missing:
        raise LoopwrightError(
            f"{method!r} and {against!r} were not run on the same tasks and seeds: {missing}"
        ) from None
    if not rows:
        raise LoopwrightError(f"no runs of {method!r}")
    return np.array(rows)


def hit_rate(records: Sequence[RunRecord], method: str) -> float:
    return float(np.mean([r.hit for r in records if r.method == method]))


def cost_ratio(
    records: Sequence[RunRecord], suite: str, method: str, against: str, *, resamples: int = 2000, seed: int = 0
) -> Ratio:
    """The ratio with a 95 % percentile interval of the hierarchical bootstrap (tasks, then seeds within each)."""
    logs = paired_log_ratios(records, method, against)
    tasks, seeds = logs.shape
    rng = np.random.default_rng(seed)
    chosen = rng.integers(tasks, size=(resamples, tasks, 1))
    means = logs[chosen, rng.integers(seeds, size=(resamples, tasks, seeds))].mean(axis=(1, 2))
    low, high = np.exp(np.quantile(means, [0.025, 0.975]))
    point = float(np.exp(logs.mean()))
    return Ratio(
        suite, method, against, "geq", point, float(low), float(high), hit_rate(records, method),
        hit_rate(records, against),
    )  # fmt: skip
