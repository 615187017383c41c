"""What can be said about the runs of two methods: paired cost ratios with intervals, profiles, tests, verdicts.

Everything here takes run records; a cost in seconds is a record like any other (``timing.convert_to_seconds``).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student
from scipy.stats import wilcoxon

from loopwright.agents.judging.results import Key, RunRecord
from loopwright.envs.loop.errors import LoopwrightError

Array = npt.NDArray[np.float64]
ALPHA = 0.05
R_MAX = 4.0  # up to which ratio to the best a performance profile goes, as in AlgoPerf
MARGIN = 0.01  # of the final metric (accuracy or R2): what a method may lose and still count as no worse
GEQ, SECONDS = "geq", "seconds"


@dataclass(frozen=True)
class Ratio:
    """Geometric mean over runs of cost(method) / cost(against); below 1 is better. ``low`` and ``high``: 95 %.

    ``joint`` is the same over the ``joint_runs`` in which both hit, NaN where there are none: it says what was saved
    where both get there, and not who gets there more often.
    """

    suite: str
    method: str
    against: str
    unit: str
    point: float
    low: float
    high: float
    hit_rate: float
    against_hit_rate: float
    joint: float = math.nan
    joint_runs: int = 0

    @property
    def saving(self) -> float:
        """Less cost, as a share: 1 - T / T_base."""
        return 1 - self.point

    def as_dict(self) -> dict[str, Any]:
        """JSON values: what is not a number, or without bound, is None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


def collect_costs(
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


def pair_log_ratios(records: Sequence[RunRecord], method: str, against: str) -> Array:
    """log(cost ratio) as ``[trainings, tasks, seeds]``.

    Every training of one method is compared with the one of the other, or each with its own where there are as many.
    Raises ``LoopwrightError`` unless both methods made the same runs.
    """
    ours, tasks, seeds = collect_costs(records, method)
    theirs, their_tasks, their_seeds = collect_costs(records, against)
    if (tasks, seeds) != (their_tasks, their_seeds):
        raise LoopwrightError(f"{method!r} and {against!r} were not run on the same tasks and seeds")
    if 1 not in (len(ours), len(theirs)) and len(ours) != len(theirs):
        raise LoopwrightError(f"{method!r} has {len(ours)} trainings, {against!r} has {len(theirs)}")
    return np.log(ours) - np.log(theirs)


def average_share(records: Sequence[RunRecord]) -> float:
    """Geometric mean over runs of the share of the budget that the target cost; a miss counts 1."""
    return math.exp(sum(math.log(r.cost / r.budget) for r in records) / len(records))


def measure_hit_rate(records: Sequence[RunRecord], method: str) -> float:
    return float(np.mean([r.hit for r in records if r.method == method]))


def estimate_interval(values: Array, extra: float = 0.0) -> tuple[float, float]:
    """95 % interval of the mean of ``[trainings, tasks, seeds]``, over trainings and tasks that were not drawn.

    Trainings and tasks are two crossed random factors, seeds are drawn within a task. The variance of the mean is that
    of the means of trainings, plus what tasks add to it: their mean square less that of the interaction, where it is
    more (Searle, Casella & McCulloch 1992, section 4.3). Each part is multiplied by the square of Student's t for its
    own degrees of freedom (Howe 1974), so that three trainings count as the three they are; Satterthwaite's single t
    for the sum covers 93 % where trainings differ most. Where there is one task, its seeds take the place of tasks; one
    training is taken as it is, and the interval is about that training. ``extra`` is a variance of the mean that comes
    on top. A single value shows nothing: its interval is unbounded.
    """
    if values.shape[1] == 1:
        values = values.transpose(0, 2, 1)
    trainings, units, _ = values.shape
    mean, of_training, of_unit = values.mean(), values.mean(axis=(1, 2)), values.mean(axis=(0, 2))
    if trainings == units == 1:
        return -math.inf, math.inf

    def quantile(count: int) -> float:
        return float(student.ppf(1 - ALPHA / 2, count - 1))

    square, shared = 1.96**2 * extra, 0.0
    if trainings > 1:
        square += quantile(trainings) ** 2 * of_training.var(ddof=1) / trainings
        if units > 1:
            rest = values.mean(axis=2) - of_training[:, None] - of_unit[None, :] + mean
            shared = (rest**2).sum() / ((trainings - 1) * (units - 1)) / (trainings * units)
    if units > 1:
        square += quantile(units) ** 2 * max(0.0, of_unit.var(ddof=1) / units - shared)
    half = math.sqrt(square)
    return float(mean - half), float(mean + half)


def compare_joint_hits(records: Sequence[RunRecord], method: str, against: str) -> tuple[float, int]:
    """Geometric mean cost ratio over the runs in which both hit, NaN without any, and how many those are."""
    hit = [collect_costs(records, name, lambda r: r.hit)[0].astype(bool) for name in (method, against)]
    logs, both = pair_log_ratios(records, method, against), hit[0] & hit[1]
    return (math.exp(logs[both].mean()) if both.any() else math.nan), int(both.sum())


def compare_costs(
    records: Sequence[RunRecord], suite: str, method: str, against: str, *, unit: str = GEQ, extra: float = 0.0
) -> Ratio:
    """The ratio with its interval; ``extra`` is as in ``estimate_interval``, of the logarithm of the ratio."""
    logs = pair_log_ratios(records, method, against)
    low, high = estimate_interval(logs, extra)
    return Ratio(
        suite, method, against, unit, math.exp(logs.mean()), math.exp(low), math.exp(high),
        measure_hit_rate(records, method), measure_hit_rate(records, against),
        *compare_joint_hits(records, method, against),
    )  # fmt: skip


def judge_ratios(ratios: Sequence[Ratio]) -> str:
    """In a word: "wins" only where every ratio's interval ends below 1 and the hit rate is no lower.

    "loses" where an interval begins above 1 or, with no saving in any unit, the hit rate is lower; else "no difference
    shown".
    ``ratios`` are one comparison in every unit of cost there is.
    """
    lower_hits = any(r.hit_rate < r.against_hit_rate for r in ratios)
    if all(r.high < 1 for r in ratios) and not lower_hits:
        return "wins"
    if any(r.low > 1 for r in ratios) or (lower_hits and all(r.point >= 1 for r in ratios)):
        return "loses"
    return "no difference shown"


def state_verdict(ratios: Sequence[Ratio]) -> str:
    """The verdict as it may be written: "wins" needs both units of cost."""
    found = judge_ratios(ratios)
    timed = any(ratio.unit == SECONDS for ratio in ratios)
    return "less geq; time was not measured" if found == "wins" and not timed else found


@dataclass(frozen=True)
class TaskRow:
    """One task: the ratio, the p value of a paired Wilcoxon test over seeds, and the same after Holm's correction."""

    task: str
    ratio: Ratio
    p: float
    holm: float
    testable: bool = True

    @property
    def outcome(self) -> str:
        """ "win", "loss", "tie"; or "not testable", where so few seeds cannot reject on so many tasks."""
        if not self.testable:
            return "not testable"
        if self.holm >= ALPHA:
            return "tie"
        return "win" if self.ratio.point < 1 else "loss"


def compare_tasks(records: Sequence[RunRecord], method: str, against: str, *, unit: str = GEQ) -> list[TaskRow]:
    """A row per task, sorted by name. Several trainings are averaged before the test: their runs share a rival."""
    logs = pair_log_ratios(records, method, against).mean(axis=0)
    _, tasks, _ = collect_costs(records, method)
    # With n seeds no two-sided p is below 2 / 2^n; Holm multiplies the smallest by the number of tasks.
    testable = 2.0 ** (1 - logs.shape[1]) * len(tasks) < ALPHA
    p_values = [float(wilcoxon(row, zero_method="pratt").pvalue) if np.any(row != 0) else 1.0 for row in logs]
    return [
        TaskRow(
            task,
            compare_costs([r for r in records if r.task == task], task, method, against, unit=unit),
            p,
            corrected,
            testable,
        )
        for task, p, corrected in zip(tasks, p_values, correct_holm(p_values), strict=True)
    ]


def correct_holm(p_values: Sequence[float]) -> list[float]:
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


def make_profiles(records: Sequence[RunRecord], methods: Sequence[str]) -> list[Profile]:
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


def compare_final_metric(records: Sequence[RunRecord], method: str, against: str) -> FinalMetric:
    """A metric below 0 (an R2 of a run in ruins) counts as 0, lest one such run decide."""

    def score(record: RunRecord) -> float:
        return max(record.final_metric, 0.0) if math.isfinite(record.final_metric) else 0.0

    difference = collect_costs(records, method, score)[0] - collect_costs(records, against, score)[0]
    low, high = estimate_interval(difference)
    return FinalMetric(float(difference.mean()), low, high)


def count_break_even(
    records: Sequence[RunRecord], method: str, against: str, meta_flops: float, flops: Mapping[str, float]
) -> float:
    """After how many runs the FLOPs of finding the method have been saved; infinite where nothing is saved.

    ``flops`` says what a geq stands for on each task: geq of different models do not add up.
    """

    def spent(record: RunRecord) -> float:
        return record.cost * flops[record.task]

    saved = float(collect_costs(records, against, spent)[0].mean() - collect_costs(records, method, spent)[0].mean())
    return meta_flops / saved if saved > 0 else math.inf
