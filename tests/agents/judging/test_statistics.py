"""Figures with known answers: planted savings, ties and regressions, and tests against their definitions."""

import math
from dataclasses import replace

import numpy as np
import pytest

from loopwright.agents.judging.evaluation import Evaluation, Method
from loopwright.agents.judging.report import write_html, write_markdown
from loopwright.agents.judging.results import RunRecord, TracePoint
from loopwright.agents.judging.statistics import (
    R_MAX,
    SECONDS,
    compare_costs,
    compare_final_metric,
    compare_joint_hits,
    compare_tasks,
    correct_holm,
    count_break_even,
    estimate_interval,
    judge_ratios,
    make_profiles,
    pair_log_ratios,
)
from loopwright.agents.judging.tables import make_tables
from loopwright.agents.judging.timing import Timing, estimate_timing_variance
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.plan import LoopPlan

TASKS = ("digits-mlp:100000", "digits-mlp:100001", "digits-conv:100000", "digits-conv:100001", "breast-cancer:100000",
         *(f"mixtures:{n}" for n in (1, 2, 3, 4, 5, 6, 7)))  # fmt: skip
PLANTED = {"saving": 0.7, "tie": 1.0, "regression": 1.3}


def planted(
    ratio: float, seed: int, trainings: int = 3, spread: tuple[float, float, float] = (0.05, 0.25, 0.2)
) -> list[RunRecord]:
    """Runs of an agent whose costs are ``ratio`` of a rival's, but for what trainings, tasks and seeds add."""
    rng = np.random.default_rng(seed)
    of_training, of_task = rng.normal(0, spread[0], trainings), rng.normal(0, spread[1], len(TASKS))
    trace = (TracePoint(10.0, 1.0, LoopPlan()), TracePoint(20.0, 0.5, LoopPlan(learning_rate=1e-2)))
    records = []
    for number, task in enumerate(TASKS):
        for run in range(10):
            cost = 1000 * math.exp(rng.normal(0, spread[2]))
            records.append(RunRecord("rival", task, run, "hit", cost, 9e3, 0.1, 0.9, 0, None, trace))
            for training in range(trainings):
                own = cost * ratio * math.exp(of_training[training] + of_task[number] + rng.normal(0, spread[2]))
                records.append(RunRecord("agent", task, run, "hit", own, 9e3, 0.1, 0.9, training, None, trace))
    return records


def evaluation(records: list[RunRecord], seconds: float = 1.0) -> Evaluation:
    timings = [Timing(m, t, (s,) * 3, 0.1) for m, s in (("agent", seconds), ("rival", 1.0)) for t in TASKS]
    methods = (Method("agent", "agent"), Method("rival", "fixed default"))
    return Evaluation(
        "agent", "rival", methods, {"planted": TASKS}, tuple(records), tuple(timings), 1e6, dict.fromkeys(TASKS, 1.0)
    )


@pytest.mark.parametrize("planted_as", PLANTED)
def test_intervals_cover_what_was_planted(planted_as: str) -> None:
    truth, covered = PLANTED[planted_as], 0
    for seed in range(500):
        ratio = compare_costs(planted(truth, seed), "s", "agent", "rival")
        covered += ratio.low <= truth <= ratio.high
    assert 0.93 <= covered / 500 <= 0.995


@pytest.mark.parametrize("trainings", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("of_training", "of_task", "of_both"),
    [(0.3, 0.1, 0.0), (0.3, 0.1, 0.3), (0.1, 0.1, 0.1), (0.1, 0.3, 0.0), (0.0, 0.3, 0.1), (0.0, 0.1, 0.0)],
)
def test_intervals_hold_95_percent_whatever_varies_most(
    trainings: int, of_training: float, of_task: float, of_both: float
) -> None:
    """Standard deviations over trainings, tasks and both together; 1500 draws know a share of 95 % to 1.1 % (2 sd)."""
    rng = np.random.default_rng(0)
    covered, draws, tasks, seeds = 0, 1500, 12, 10
    for _ in range(draws):
        own = rng.normal(0, of_training, (trainings, 1, 1)) * (trainings > 1)  # one training is taken as it is
        values = own + rng.normal(0, of_task, (1, tasks, 1)) + rng.normal(0, of_both, (trainings, tasks, 1))
        values = values + rng.normal(0, 0.2, (1, tasks, seeds)) + rng.normal(0, 0.2, (trainings, tasks, seeds))
        low, high = estimate_interval(values)
        covered += low <= 0 <= high
    assert covered / draws >= 0.935


def test_a_single_value_shows_nothing() -> None:
    assert estimate_interval(np.ones((1, 1, 1))) == (-math.inf, math.inf)
    records = [RunRecord(m, "a", 0, "hit", c, 9.0, 0.1, 0.9) for m, c in (("agent", 1.0), ("rival", 2.0))]
    ratio = compare_costs(records, "s", "agent", "rival")
    assert (ratio.point, judge_ratios([ratio])) == (0.5, "no difference shown")
    assert (ratio.as_dict()["low"], ratio.as_dict()["high"]) == (0.0, None)


def test_wins_is_written_only_where_something_was_saved() -> None:
    for planted_as, truth in PLANTED.items():
        shown = evaluation(planted(truth, seed=1, spread=(0.05, 0.1, 0.2)))
        pages = [
            write_html(shown, {}),
            *(write_markdown(table) for table in make_tables(shown)),
            shown.headline("planted"),
        ]
        assert all(("wins" in page) == (planted_as == "saving") for page in (pages[0], pages[-1]))
        assert any("wins" in page for page in pages) == (planted_as == "saving")
        assert ("loses" in shown.headline("planted")) == (planted_as == "regression")


def test_a_win_needs_both_units_and_the_hits() -> None:
    records = planted(0.7, seed=1, spread=(0.05, 0.1, 0.2))
    assert evaluation(records).verdict("planted", "rival") == "wins"
    assert evaluation(records, seconds=2.0).verdict("planted", "rival") == "loses"
    assert evaluation(records, seconds=1.4).verdict("planted", "rival") == "no difference shown"
    untimed = Evaluation("agent", "rival", evaluation(records).methods, {"planted": TASKS}, tuple(records))
    assert "wins" not in untimed.verdict("planted", "rival")
    missed = [RunRecord(r.method, r.task, r.seed, "miss", r.cost, r.budget, 1.0, 0.5, r.training)
              if r.method == "agent" and r.seed == 0 else r for r in records]  # fmt: skip
    assert evaluation(missed).verdict("planted", "rival") == "no difference shown"


def test_one_training_and_one_task_have_intervals_too() -> None:
    records = [r for r in planted(0.7, 0, trainings=1) if r.task == TASKS[0]]
    ratio = compare_costs(records, "s", "agent", "rival")
    assert 0 < ratio.low <= ratio.point <= ratio.high
    assert ratio.saving == pytest.approx(1 - ratio.point)


def test_trainings_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.01, (3, 8, 10))
    apart = values + np.array([-0.3, 0.0, 0.3])[:, None, None]
    narrow, wide = estimate_interval(values), estimate_interval(apart)
    assert wide[1] - wide[0] > 10 * (narrow[1] - narrow[0])


def test_unpaired_runs_are_refused() -> None:
    records = planted(0.9, 0)
    with pytest.raises(LoopwrightError, match="missing"):
        pair_log_ratios(records[:-1], "agent", "rival")
    with pytest.raises(LoopwrightError, match="same tasks and seeds"):
        pair_log_ratios([r for r in records if r.method == "agent" or r.seed], "agent", "rival")
    with pytest.raises(LoopwrightError, match="no runs of 'nobody'"):
        pair_log_ratios(records, "nobody", "rival")
    two = [r for r in records if r.training < 2]
    others = [RunRecord("other", r.task, r.seed, "hit", 1.0, 1.0, 0, 0, r.training) for r in records
              if r.method == "agent"]  # fmt: skip
    with pytest.raises(LoopwrightError, match="trainings"):
        pair_log_ratios([*two, *others], "agent", "other")


def test_holm_by_hand() -> None:
    assert correct_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert correct_holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_tasks_are_won_and_lost_by_a_paired_test() -> None:
    records = []
    for run in range(12):
        for task, ratio in (("a", 0.5), ("b", 2.0), ("c", 1.0 + 0.1 * (-1) ** run)):
            records += [RunRecord("agent", task, run, "hit", ratio * (1 + run / 100), 9.0, 0.1, 0.9),
                        RunRecord("rival", task, run, "hit", 1.0, 9.0, 0.1, 0.9)]  # fmt: skip
    rows = {row.task: row for row in compare_tasks(records, "agent", "rival")}
    assert [rows[t].outcome for t in "abc"] == ["win", "loss", "tie"]
    assert rows["a"].holm == pytest.approx(3 * rows["a"].p)


def test_profiles_by_hand() -> None:
    costs = {"fast": {"a": 1.0, "b": 4.0}, "slow": {"a": 2.0, "b": 1.0}}
    records = [
        RunRecord(method, task, seed, "hit", cost, 9.0, 0.1, 0.9)
        for method, own in costs.items() for task, cost in own.items() for seed in range(3)
    ]  # fmt: skip
    records += [RunRecord("never", task, seed, "miss", 1.0, 1.0, 9.0, 0.1) for task in "ab" for seed in range(3)]
    fast, slow, never = make_profiles(records, ["fast", "slow", "never"])
    assert fast.steps == ((1.0, 0.5), (4.0, 1.0))
    assert slow.steps == ((1.0, 0.5), (2.0, 1.0))
    assert fast.score == pytest.approx(0.5)  # task a at once, task b only at the very end
    assert slow.score == pytest.approx((1 + (R_MAX - 2) / (R_MAX - 1)) / 2)
    assert (never.steps, never.score) == ((), 0.0)


def test_a_final_metric_is_no_worse_within_the_margin() -> None:
    def runs(loss: float) -> list[RunRecord]:
        return [RunRecord(m, t, s, "hit", 1.0, 2.0, 0.1, v + s / 1000)
                for t in "abc" for s in range(5) for m, v in (("agent", 0.9 - loss), ("rival", 0.9))]  # fmt: skip

    assert compare_final_metric(runs(0.0), "agent", "rival").no_worse
    assert compare_final_metric(runs(0.005), "agent", "rival").no_worse
    assert not compare_final_metric(runs(0.02), "agent", "rival").no_worse
    ruined = [*runs(0.0)[:-2], RunRecord("agent", "c", 4, "diverged", 2.0, 2.0, math.nan, -50.0), runs(0.0)[-1]]
    assert compare_final_metric(ruined, "agent", "rival").difference == pytest.approx(-0.904 / 15)


def test_break_even_is_what_training_cost_over_what_a_run_saves() -> None:
    records = [RunRecord(m, t, s, "hit", c, 200.0, 0.1, 0.9) for s in range(3)
               for t, m, c in (("a", "agent", 60.0), ("a", "rival", 100.0),
                               ("b", "agent", 60.0), ("b", "rival", 50.0))]  # fmt: skip
    # On task b, 10 geq are lost; there they are worth a tenth of those that are saved on task a.
    flops = {"a": 10.0, "b": 1.0}
    assert count_break_even(records, "agent", "rival", 4000.0, flops) == pytest.approx(4000 / 195)
    assert count_break_even(records, "rival", "agent", 4000.0, flops) == math.inf


def test_what_is_saved_where_both_hit_stands_beside_what_hitting_saves() -> None:
    records = []
    for seed, (ours, theirs) in enumerate([("hit", "hit"), ("hit", "miss"), ("miss", "hit")]):
        for method, outcome, cost in (("agent", ours, 50.0), ("rival", theirs, 40.0)):
            paid = cost if outcome == "hit" else 100.0
            records.append(RunRecord(method, "a", seed, outcome, paid, 100.0, 0.1, 0.9))
    assert compare_joint_hits(records, "agent", "rival") == (pytest.approx(1.25), 1)
    ratio = compare_costs(records, "s", "agent", "rival")
    assert (ratio.joint, ratio.joint_runs) == (pytest.approx(1.25), 1)
    none, count = compare_joint_hits([r for r in records if r.seed], "agent", "rival")
    assert (math.isnan(none), count) == (True, 0)


def test_how_far_timings_lie_apart_widens_the_intervals_in_seconds() -> None:
    records = planted(0.7, seed=1)
    rng = np.random.default_rng(0)
    rounds = [(m, t, tuple(np.exp(rng.normal(0, 0.5, 5)))) for m in ("agent", "rival") for t in TASKS]
    sure = evaluation(records)
    unsure = replace(sure, timings=tuple(Timing(m, t, r, 0.1) for m, t, r in rounds))
    added = estimate_timing_variance(unsure.timings, "agent", "rival", TASKS)
    assert estimate_timing_variance(sure.timings, "agent", "rival", TASKS) == 0
    # Two independent errors of 0.5 in the logarithm, the median of five rounds, the mean over the tasks.
    assert added == pytest.approx(math.pi / 2 * 2 * 0.25 / 5 / len(TASKS), rel=0.5)
    ratio, without = unsure.ratio("planted", "rival", SECONDS), compare_costs(
        unsure.runs("planted", SECONDS), "planted", "agent", "rival"
    )  # fmt: skip
    assert math.log(ratio.high / ratio.low) ** 2 == pytest.approx(
        math.log(without.high / without.low) ** 2 + (2 * 1.96) ** 2 * added, rel=1e-6
    )


def test_tasks_that_no_test_could_decide_are_not_called_ties() -> None:
    def rows(seeds: int, tasks: int) -> set[str]:
        records = [
            RunRecord(method, f"t{task}", seed, "hit", cost * (1 + seed / 100), 9.0, 0.1, 0.9)
            for task in range(tasks)
            for seed in range(seeds)
            for method, cost in (("agent", 1.0), ("rival", 2.0))
        ]
        return {row.outcome for row in compare_tasks(records, "agent", "rival")}

    assert rows(10, 26) == {"not testable"}  # 26 x 2 / 2^10 is above 0.05
    assert rows(11, 26) == {"win"}


def test_a_verdict_is_about_every_unit() -> None:
    better = compare_costs(planted(0.5, 0, spread=(0, 0, 0.1)), "s", "agent", "rival")
    same = compare_costs(planted(1.0, 0, spread=(0, 0.1, 0.1)), "s", "agent", "rival")
    assert judge_ratios([better]) == judge_ratios([better, better]) == "wins"
    assert judge_ratios([better, same]) == "no difference shown"
    worse = replace(same, point=1.01, low=0.9, high=1.1, hit_rate=0.8, against_hit_rate=0.9)
    assert judge_ratios([worse]) == "loses"  # nothing saved, and fewer hits
    assert judge_ratios([worse, replace(worse, point=0.99)]) == "no difference shown"
    assert judge_ratios([replace(worse, hit_rate=0.9)]) == "no difference shown"
