"""Schedules, evaluation and statistics."""

import itertools
import math

import numpy as np
import pytest
import torch

from loopwright.agents.bundle import Bundle
from loopwright.agents.competitors import (
    COMPETITORS,
    TUNING_SEEDS,
    candidates,
    describe,
    from_description,
    geometric_cost,
    tune,
    tuned_competitors,
)
from loopwright.agents.controller import Constant, Controller, Cosine, OpenLoop, ReduceOnPlateau, View
from loopwright.agents.evaluation import Job, RunRecord, run_controller, run_jobs
from loopwright.agents.statistics import cost_ratio, paired_log_ratios
from loopwright.envs.episodes import EpisodeSettings
from loopwright.envs.knobs import KnobSet
from loopwright.envs.observation import OBSERVATION_NAMES
from loopwright.envs.plan import ROW, LoopPlan, stack_plans
from loopwright.inner_tasks import Task, get_task
from loopwright.inner_tasks.errors import LoopwrightError

SHORT = EpisodeSettings(budget_factor=0.5)


def view(spent: float, decisions: int = 1, control: float = 0.0) -> View:
    observation = torch.zeros(1, len(OBSERVATION_NAMES))
    observation[0, OBSERVATION_NAMES.index("control_progress")] = control
    taken = torch.tensor([float(decisions)])
    return View(observation, stack_plans([LoopPlan()]), torch.tensor([spent]), taken, rate_scale=torch.ones(1))


def rate(controller: Controller, seen: View) -> float:
    return float(controller.decide(seen)[ROW["learning_rate"], 0])


def test_cosine_decays_over_its_horizon_and_stays() -> None:
    schedule = Cosine(LoopPlan(learning_rate=1.0), horizon=0.5, final=0.0)
    assert [rate(schedule, view(s)) for s in (0, 0.25, 0.5, 0.9)] == pytest.approx([1, 0.5, 0, 0], abs=1e-6)


def test_warm_up_rises_then_decays() -> None:
    schedule = Cosine(LoopPlan(learning_rate=1.0), warm_up=0.2)
    rates = [rate(schedule, view(s)) for s in np.linspace(0, 1, 21)]
    assert np.argmax(rates) == 4
    assert rates[0] < 0.2
    assert all(a < b for a, b in itertools.pairwise(rates[:5]))


def test_plateau_waits_then_reduces_and_forgets_at_a_new_episode() -> None:
    rule = ReduceOnPlateau(LoopPlan(learning_rate=1.0), factor=0.5, patience=2, threshold=0.01)
    losses = [0.0, -0.5, -0.5, -0.5, -0.5, -1.0]
    rates = [rate(rule, view(0, decisions=i, control=loss)) for i, loss in enumerate(losses)]
    assert rates == pytest.approx([1, 1, 1, 1, 0.5, 0.5])
    assert rate(rule, view(0, decisions=0)) == 1


def test_every_competitor_survives_its_description_and_fits_the_protocol() -> None:
    for kind in COMPETITORS:
        for controller in candidates(kind, 4):
            assert isinstance(controller, Controller)
            assert describe(from_description(kind, describe(controller))) == describe(controller)
    tuned = tuned_competitors()
    assert [c.name for c in tuned] == ["default AdamW", *COMPETITORS]
    with pytest.raises(LoopwrightError, match="horizon"):
        Cosine(LoopPlan(), horizon=0.0)


def test_runs_are_paired_and_do_not_depend_on_the_lanes(small_task: Task) -> None:
    controller = Constant(LoopPlan(learning_rate=3e-3))
    some = run_controller(controller, [small_task], [1, 2, 3], SHORT, lanes=2)
    other = run_controller(controller, [small_task], [1, 2, 3], SHORT, lanes=3, traced=[(small_task.name, 2)])
    by_seed = {r.seed: r for r in other}
    assert sorted(r.seed for r in some) == [1, 2, 3]
    for record in some:
        assert record.outcome == by_seed[record.seed].outcome
        assert record.cost == by_seed[record.seed].cost
        assert record.final_loss == pytest.approx(by_seed[record.seed].final_loss, rel=1e-3)
    assert not by_seed[1].trace
    assert by_seed[2].trace[-1]["loss"] == by_seed[2].final_loss


def test_runs_of_several_controllers_and_tasks_in_one_batch_are_the_runs_they_are_alone(small_task: Task) -> None:
    other_task = get_task("digits-conv:0")
    controllers = [
        Constant(LoopPlan(learning_rate=3e-3), name="first"),
        Cosine(LoopPlan(learning_rate=1e-2), horizon=0.5, name="second"),
        ReduceOnPlateau(LoopPlan(learning_rate=1e-2), patience=0, name="third"),
    ]
    jobs = [Job(c, task, seed) for seed in (1, 2) for c in controllers for task in (small_task, other_task)]
    seen: list[RunRecord] = []
    mixed = run_jobs(jobs, SHORT, lanes=3, on_run=seen.append)
    assert sorted(map(repr, seen)) == sorted(map(repr, mixed))
    assert [(r.method, r.task, r.seed) for r in mixed] == [(j.controller.name, j.task.name, j.seed) for j in jobs]
    for controller in controllers:
        for task in (small_task, other_task):
            alone = run_controller(controller, [task], [1, 2], SHORT)
            own = [r for r in mixed if (r.method, r.task) == (controller.name, task.name)]
            assert [(r.seed, r.outcome, r.cost) for r in own] == [(r.seed, r.outcome, r.cost) for r in alone]
            assert [r.final_loss for r in own] == pytest.approx([r.final_loss for r in alone], rel=1e-3)


def test_tuning_finds_the_cheapest_candidate(small_task: Task) -> None:
    tried = list(candidates("constant", 4))
    costs = [geometric_cost(run_controller(c, [small_task], TUNING_SEEDS, SHORT)) for c in tried]
    winner, cost, decisions = tune("constant", 4, [small_task], SHORT)
    assert cost == pytest.approx(min(costs), rel=1e-3)
    assert describe(winner) == describe(tried[costs.index(min(costs))])
    assert decisions > 0


def test_a_wrapped_competitor_ties_with_itself(small_task: Task) -> None:
    plan = LoopPlan(learning_rate=3e-3)
    records = [r for name in ("a", "b") for r in run_controller(Constant(plan, name=name), [small_task], [1, 2], SHORT)]
    ratio = cost_ratio(records, "s", "a", "b")
    assert (ratio.point, ratio.low, ratio.high) == (1, 1, 1)


def planted(saving: float, noise: float, seed: int) -> list[RunRecord]:
    rng = np.random.default_rng(seed)
    records = []
    for task in range(8):
        effect = rng.normal(0, noise)
        for run in range(10):
            cost = 1000 * math.exp(rng.normal(0, noise))
            own = cost * (1 - saving) * math.exp(effect + rng.normal(0, noise))
            records += [
                RunRecord(m, f"t{task}", run, "hit", c, 9e3, 0.1, 0.9) for m, c in (("agent", own), ("rival", cost))
            ]
    return records


def test_intervals_cover_a_planted_saving() -> None:
    covered = 0
    for seed in range(100):
        ratio = cost_ratio(planted(0.3, 0.2, seed), "s", "agent", "rival", resamples=400)
        covered += ratio.low <= 0.7 <= ratio.high
    assert 82 <= covered <= 100
    ratio = cost_ratio(planted(0.0, 0.0, 0), "s", "agent", "rival")
    assert ratio.point == pytest.approx(1)
    assert ratio.hit_rate == ratio.against_hit_rate == 1


def test_unpaired_runs_are_refused() -> None:
    records = planted(0.1, 0.1, 0)
    with pytest.raises(LoopwrightError, match="same tasks and seeds"):
        paired_log_ratios(records[:-1], "agent", "rival")
    with pytest.raises(LoopwrightError, match="no runs of 'nobody'"):
        paired_log_ratios(records, "nobody", "rival")


def test_an_open_loop_follows_its_plans_and_then_the_last(small_task: Task) -> None:
    plans = (LoopPlan(learning_rate=1e-5), LoopPlan(learning_rate=1e-5, batch=1), LoopPlan("sgd", 1e-5))
    controller = OpenLoop(plans)
    longer = EpisodeSettings(budget_factor=1.0)
    (record,) = run_controller(controller, [small_task], [3], longer, traced=[(small_task.name, 3)])
    followed = [point["plan"] for point in record.trace]
    assert [(p["batch"], p["optimizer"]) for p in followed[:4]] == [(2, "adamw"), (1, "adamw"), (2, "sgd"), (2, "sgd")]
    assert len(followed) >= 4
    assert not controller.rolls_back
    rolling = OpenLoop((LoopPlan(), LoopPlan(rollback=True)))
    assert rolling.rolls_back
    assert run_controller(rolling, [small_task], [3], SHORT)[0].cost > 0


def test_an_agents_schedule_replayed_on_its_own_run_is_its_run(small_task: Task) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(len(OBSERVATION_NAMES), 8))
    agent = Bundle(network, KnobSet("lr+batch"), LoopPlan(learning_rate=3e-3))
    (own,) = run_controller(agent, [small_task], [4], SHORT, traced=[(small_task.name, 4)])
    plans = tuple(LoopPlan(**point["plan"]) for point in own.trace)
    (again,) = run_controller(OpenLoop(plans), [small_task], [4], SHORT, traced=[(small_task.name, 4)])
    for ours, theirs in zip(own.trace, again.trace, strict=False):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert own.trace[0]["cost"] > again.trace[0]["cost"]  # the looks are saved
