"""What can be said about the runs of two methods: paired cost ratios with intervals, profiles, tests, verdicts.

Everything here takes run records; a cost in seconds is a record like any other (``timing.in_seconds``).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import wilcoxon

from loopwright.agents.results import Key, RunRecord
from loopwright.inner_tasks.errors import LoopwrightError

Array = npt.NDArray[np.float64]
ALPHA = 0.05
R_MAX = 4.0  # up to which ratio to the best a performance profile goes, as in AlgoPerf
MARGIN = 0.01  # of the final metric (accuracy or R2): what a method may lose and still count as no worse
GEQ, SECONDS = "geq", "seconds"


@dataclass(frozen=True)
class Ratio:
    """Geometric mean over runs of cost(method) / cost(against); below 1 is better. ``low`` and ``high``: 95 %."""

    suite: str
    method: str
    against: str
    unit: str
    point: float
    low: float
    high: float
    hit_rate: float
    against_hit_rate: float

    @property
    def saving(self) -> float:
        """Less cost, as a share: 1 - T / T_base."""
        return 1 - self.point

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def costs(
    records: Sequence[RunRecord], method: str, value: Callable[[RunRecord], float] = lambda record: record.cost
) -> tuple[Array, list[str], list[int]]:
    """Costs, or another value, ``[trainings, tasks, seeds]``, tasks and seeds.

    Raises ``LoopwrightError`` where runs are missing.
    """
    found = {r.key: value(r) for r in records if r.method == method}
    if not found:
        raise LoopwrightError(f"no runs of {method!r}")
    trainings, tasks, seeds = (sorted({getattr(key, name) for key in found}) for name in ("training", "task", "seed"))
    try:
        array = [[[found[Key(method, i, t, s)] for s in seeds] for t in tasks] for i in trainings]
    except KeyError as missing:
        raise LoopwrightError(f"the run {missing} is missing") from None
    return np.array(array), tasks, seeds


def paired_log_ratios(records: Sequence[RunRecord], method: str, against: str) -> Array:
    """log(cost ratio) as ``[trainings, tasks, seeds]``.

    Every training of one method is compared with the one of the other, or each with its own where there are as many.
    Raises ``LoopwrightError`` unless both methods made the same runs.
    """
    ours, tasks, seeds = costs(records, method)
    theirs, their_tasks, their_seeds = costs(records, against)
    if (tasks, seeds) != (their_tasks, their_seeds):
        raise LoopwrightError(f"{method!r} and {against!r} were not run on the same tasks and seeds")
    if 1 not in (len(ours), len(theirs)) and len(ours) != len(theirs):
        raise LoopwrightError(f"{method!r} has {len(ours)} trainings, {against!r} has {len(theirs)}")
    return np.log(ours) - np.log(theirs)


def geometric_share(records: Sequence[RunRecord]) -> float:
    """Geometric mean over runs of the share of the budget that the target cost; a miss counts 1."""
    return math.exp(sum(math.log(r.cost / r.budget) for r in records) / len(records))


def hit_rate(records: Sequence[RunRecord], method: str) -> float:
    return float(np.mean([r.hit for r in records if r.method == method]))


def bootstrap(values: Array, *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of ``[trainings, tasks, seeds]``, resampled on all three levels.

    Seeds are drawn anew within each task. Resampling n things shows only (n - 1) / n of their variance, which matters
    for three trainings, so the means of trainings and of tasks are spread by the root of its inverse first (Davison &
    Hinkley 1997, section 3.8).
    """
    trainings, tasks, seeds = values.shape
    mean = values.mean()
    for count, axes in ((trainings, (1, 2)), (tasks, (0, 2))):
        if count > 1:
            values = values + (math.sqrt(count / (count - 1)) - 1) * (values.mean(axis=axes, keepdims=True) - mean)
    rng = np.random.default_rng(seed)
    training = rng.integers(trainings, size=(resamples, trainings, 1, 1))
    task = rng.integers(tasks, size=(resamples, 1, tasks, 1))
    means = values[training, task, rng.integers(seeds, size=(resamples, 1, tasks, seeds))].mean(axis=(1, 2, 3))
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def cost_ratio(
    records: Sequence[RunRecord], suite: str, method: str, against: str, *, unit: str = GEQ, resamples: int = 2000
) -> Ratio:
    """The ratio with its hierarchical bootstrap interval (trainings, tasks, seeds)."""
    logs = paired_log_ratios(records, method, against)
    low, high = bootstrap(logs, resamples=resamples)
    return Ratio(
        suite, method, against, unit, math.exp(logs.mean()), math.exp(low), math.exp(high),
        hit_rate(records, method), hit_rate(records, against),
    )  # fmt: skip


def verdict(ratios: Sequence[Ratio]) -> str:
    """In a word: "wins" only where every ratio's interval ends below 1 and the hit rate is no lower.

    "loses" where an interval begins above 1 or, without any saving, the hit rate is lower; else "no difference shown".
    ``ratios`` are one comparison in every unit of cost there is.
    """
    lower_hits = any(r.hit_rate < r.against_hit_rate for r in ratios)
    if all(r.high < 1 for r in ratios) and not lower_hits:
        return "wins"
    if any(r.low > 1 for r in ratios):
        return "loses"
    return "no difference shown"


def stated(ratios: Sequence[Ratio]) -> str:
    """The verdict as it may be written: "wins" needs both units of cost."""
    found = verdict(ratios)
    timed = any(ratio.unit == SECONDS for ratio in ratios)
    return "less geq; time was not measured" if found == "wins" and not timed else found


@dataclass(frozen=True)
class TaskRow:
    """One task: the ratio, the p value of a paired Wilcoxon test over seeds, and the same after Holm's correction."""

    task: str
    ratio: Ratio
    p: float
    holm: float

    @property
    def outcome(self) -> str:
        if self.holm >= ALPHA:
            return "tie"
        return "win" if self.ratio.point < 1 else "loss"


def per_task(records: Sequence[RunRecord], method: str, against: str, *, unit: str = GEQ) -> list[TaskRow]:
    """A row per task, sorted by name. Several trainings are averaged before the test: their runs share a rival."""
    logs = paired_log_ratios(records, method, against).mean(axis=0)
    _, tasks, _ = costs(records, method)
    p_values = [float(wilcoxon(row, zero_method="pratt").pvalue) if np.any(row != 0) else 1.0 for row in logs]
    return [
        TaskRow(
            task, cost_ratio([r for r in records if r.task == task], task, method, against, unit=unit), p, corrected
        )
        for task, p, corrected in zip(tasks, p_values, holm(p_values), strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm 1979: the k-th smallest of n times n - k + 1, never below a smaller one's."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(p) for p in corrected]


@dataclass(frozen=True)
class Profile:
    """Performance profile (Dolan & Moré 2002): the share of tasks within a factor of the best method's cost.

    ``steps`` are (factor, share) where the share rises. ``score`` is the area under it from 1 to ``R_MAX``, in [0, 1]
    (AlgoPerf, Dahl et al. 2023, section 4.3).
    """

    method: str
    steps: tuple[tuple[float, float], ...]
    score: float


def profiles(records: Sequence[RunRecord], methods: Sequence[str]) -> list[Profile]:
    """The methods' profiles, by median cost over runs; a task that a method misses in most runs is never reached."""
    tasks = sorted({r.task for r in records})
    medians = np.empty((len(methods), len(tasks)))
    for row, method in enumerate(methods):
        for column, task in enumerate(tasks):
            own = [r.cost if r.hit else math.inf for r in records if r.method == method and r.task == task]
            # The upper of the two middle ones: the mean of a cost and infinity is no cost.
            medians[row, column] = np.quantile(own, 0.5, method="higher") if own else math.inf
    best = medians.min(axis=0)
    ratios = np.where(np.isfinite(medians), medians / np.where(np.isfinite(best), best, 1.0), math.inf)
    found = []
    for method, row in zip(methods, ratios, strict=True):
        reached = np.sort(row[row <= R_MAX])
        steps = tuple((float(at), (i + 1) / len(tasks)) for i, at in enumerate(reached))
        score = float(np.clip(R_MAX - row, 0, R_MAX - 1).sum() / (R_MAX - 1) / len(tasks))
        found.append(Profile(method, steps, score))
    return found


@dataclass(frozen=True)
class FinalMetric:
    """Mean difference of the final metric, method minus against, and whether it is no worse by more than ``MARGIN``."""

    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    @property
    def no_worse(self) -> bool:
        return self.low > -MARGIN


def final_metric(records: Sequence[RunRecord], method: str, against: str) -> FinalMetric:
    """A metric below 0 (an R2 of a run in ruins) counts as 0, lest one such run decide."""

    def score(record: RunRecord) -> float:
        return max(record.final_metric, 0.0) if math.isfinite(record.final_metric) else 0.0

    difference = costs(records, method, score)[0] - costs(records, against, score)[0]
    low, high = bootstrap(difference)
    return FinalMetric(float(difference.mean()), low, high)


def break_even(records: Sequence[RunRecord], method: str, against: str, meta_cost: float) -> float:
    """After how many runs the ``meta_cost`` of finding the method has been saved; infinite where nothing is saved."""
    saved = float((costs(records, against)[0].mean(axis=0) - costs(records, method)[0].mean(axis=0)).mean())
    return meta_cost / saved if saved > 0 else math.inf
