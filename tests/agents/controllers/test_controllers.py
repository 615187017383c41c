"""Controllers and competitors, and runs of several of them side by side."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from loopwright.agents.controllers.competitors import COMPETITORS, RIVALS_OF_FEW, TUNABLE
from loopwright.agents.controllers.policy import Policy
from loopwright.agents.controllers.schedules import FINAL, ReduceOnPlateau, Scheduled
from loopwright.agents.controllers.simple import Constant, OpenLoop, RandomPolicy
from loopwright.agents.controllers.tuned import (
    DEFAULT_ADAMW,
    describe_controller,
    find_best_single,
    get_starting_plan,
    load_competitors,
    restore_controller,
)
from loopwright.agents.judging.entrants import Static, make_oracle, scale_start
from loopwright.agents.judging.results import RunRecord
from loopwright.agents.judging.runner import Job, run_controller, run_jobs
from loopwright.agents.judging.statistics import average_share
from loopwright.agents.judging.tuning import TUNING_SEEDS, find_edges, plan_rounds, tune_competitor
from loopwright.envs.episode.calibration import StaticConfiguration, list_configurations
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.controller import Controller, View
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import OBSERVATION_NAMES
from loopwright.envs.loop.plan import PLAN_FIELDS, ROW, LoopPlan, stack_plans
from loopwright.inner_tasks import Task, get_task
from loopwright.inner_tasks.suites import SEARCHED

SHORT = EpisodeSettings(budget_factor=0.5)


def view(spent: float, decisions: int = 1, control: float = 0.0) -> View:
    observation = torch.zeros(1, len(OBSERVATION_NAMES))
    observation[0, OBSERVATION_NAMES.index("control_progress")] = control
    taken = torch.tensor([float(decisions)])
    return View(observation, stack_plans([LoopPlan()]), torch.tensor([spent]), taken)


def rate(controller: Controller, seen: View) -> float:
    return float(controller.decide(seen)[ROW["learning_rate"], 0])


def test_cosine_decays_over_its_horizon_and_stays() -> None:
    schedule = Scheduled(LoopPlan(learning_rate=2.0), "cosine", horizon=0.5)
    middle = 2 * (1 + FINAL) / 2
    found = [rate(schedule, view(s)) for s in (0, 0.25, 0.5, 0.9)]
    assert found == pytest.approx([2, middle, 2 * FINAL, 2 * FINAL], rel=1e-5)


def test_warm_up_rises_then_decays() -> None:
    schedule = Scheduled(LoopPlan(learning_rate=1.0), "cosine", settings={"warm_up": 0.2})
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


def test_rules_that_start_from_other_rates_do_not_step_one_another() -> None:
    tuned = ReduceOnPlateau(LoopPlan(learning_rate=1.0), factor=0.5, patience=2)
    near, far = (scale_start(tuned, factor) for factor in (0.1, 10.0))
    for decision in range(4):
        seen = view(0, decisions=decision)
        assert (rate(near, seen), rate(far, seen)) == pytest.approx((0.1, 10.0) if decision < 3 else (0.05, 5.0))


def test_a_used_rule_is_its_twin_and_a_random_policy_is_told_by_its_start() -> None:
    used, twin = (ReduceOnPlateau(LoopPlan(), patience=2) for _ in range(2))
    rate(used, view(0, decisions=0))
    assert used == twin
    assert used.fingerprint == twin.fingerprint
    one, other = (RandomPolicy(LoopPlan(learning_rate=r), KnobSet("core")) for r in (1e-3, 1e-2))
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint != replace(one, knobs=KnobSet("core", "box")).fingerprint


def test_every_competitor_survives_its_description_and_fits_the_protocol() -> None:
    for name, competitor in TUNABLE.items():
        for controller in competitor.candidates(4):
            assert isinstance(controller, Controller)
            assert controller.name == name
            assert restore_controller(name, json.loads(json.dumps(describe_controller(controller)))) == controller
    tuned = load_competitors()
    assert [c.name for c in tuned] == [DEFAULT_ADAMW, *COMPETITORS, "AdamW cosine"]
    assert [c.name for c in load_competitors(prices="measured")] == [DEFAULT_ADAMW, *TUNABLE]
    assert load_competitors(["SOAP"])[1:] == [c for c in tuned if c.name == "SOAP"]
    with pytest.raises(LoopwrightError, match="unknown tuned competitor 'nobody'"):
        load_competitors(["nobody"])


def test_schedules_are_searched_around_the_best_constant_too() -> None:
    best = get_starting_plan("tuned")
    plans = [controller.start for controller in COMPETITORS["one-cycle"].candidates(8)]
    near = [replace(plan, learning_rate=best.learning_rate) == best for plan in plans]
    assert near == [False, True] * 4


def test_the_best_constant_of_the_loop_differs_in_what_its_knobs_move() -> None:
    best, moved = get_starting_plan("tuned"), {knob.field for knob in KnobSet("loop").knobs}
    plans = [controller.start for controller in RIVALS_OF_FEW["constant loop"].candidates(64)]
    changed = {field for plan in plans for field in PLAN_FIELDS if getattr(plan, field) != getattr(best, field)}
    assert changed == moved - {"rollback"}
    assert all(len({getattr(plan, field) for plan in plans}) > 2 for field in changed)


def test_a_starting_plan_may_be_that_of_a_tuned_constant() -> None:
    (averaged,) = load_competitors(["averaged AdamW"], "measured")[1:]
    assert get_starting_plan("averaged AdamW") == averaged.start != get_starting_plan("tuned")
    assert get_starting_plan("default") == LoopPlan()
    for name in ("constant", "one-cycle", "Muon"):  # called "tuned"; and no constants
        with pytest.raises(LoopwrightError, match=f"unknown starting plan '{name}'; known: tuned, default, AdamW"):
            get_starting_plan(name)


def test_the_best_single_competitor_is_the_cheapest_where_all_were_tuned() -> None:
    assert find_best_single(["AdamW"]) == "AdamW"
    assert find_best_single(["AdamW", "averaged AdamW"]) == "averaged AdamW"
    assert find_best_single(["agent"]) == DEFAULT_ADAMW
    assert find_best_single(["clipped SGD"], "measured") == "clipped SGD"
    assert find_best_single(["clipped SGD", "AdamW"], "measured") == "AdamW"  # they were tuned on different tasks


def test_the_oracle_does_not_depend_on_the_order_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    task = get_task("digits-conv:100000")
    before = make_oracle(task)
    monkeypatch.setattr("loopwright.envs.episode.calibration.list_configurations", list)
    assert make_oracle(task) == before
    for configuration in list_configurations():
        values = json.loads(json.dumps(configuration.as_json()))
        assert StaticConfiguration.from_json(values) == configuration


def test_a_static_configuration_follows_its_cosine() -> None:
    configuration = list_configurations()[3]
    static = Static(configuration, SEARCHED)
    for decision in (0, 7, 39):
        expected = configuration.plan.learning_rate * configuration.rate_factor(decision, SEARCHED)
        assert rate(static, view(0, decisions=decision)) == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_a_random_policy_does_the_same_in_any_batch(small_task: Task) -> None:
    policy = RandomPolicy(LoopPlan(learning_rate=3e-3), KnobSet("all"))
    alone = run_controller(policy, [small_task], [2], SHORT, traced=True)
    beside = run_controller(policy, [small_task], [1, 2, 3], SHORT, traced=True)
    assert [point.plan for point in alone[0].trace][:3] == [point.plan for point in beside[1].trace][:3]
    assert len({point.plan for point in alone[0].trace}) > 2


def test_runs_are_paired_and_do_not_depend_on_the_lanes(small_task: Task) -> None:
    controller = Constant(LoopPlan(learning_rate=3e-3))
    some = run_controller(controller, [small_task], [1, 2, 3], SHORT, lanes=2)
    jobs = [Job(controller, small_task, seed, traced=seed == 2) for seed in (1, 2, 3)]
    other = run_jobs(jobs, SHORT, lanes=3)
    by_seed = {r.seed: r for r in other}
    assert sorted(r.seed for r in some) == [1, 2, 3]
    for record in some:
        assert record.outcome == by_seed[record.seed].outcome
        assert record.cost == by_seed[record.seed].cost
        assert record.final_loss == pytest.approx(by_seed[record.seed].final_loss, rel=1e-3)
    assert not by_seed[1].trace
    assert by_seed[2].trace[-1].loss == by_seed[2].final_loss


def test_runs_of_several_controllers_and_tasks_in_one_batch_are_the_runs_they_are_alone(small_task: Task) -> None:
    other_task = get_task("digits-conv:0")
    controllers = [
        Constant(LoopPlan(learning_rate=3e-3), name="first"),
        Scheduled(LoopPlan(learning_rate=1e-2), "cosine", horizon=0.5, name="second"),
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


def test_jobs_that_are_done_are_left_out(small_task: Task) -> None:
    jobs = [Job(Constant(LoopPlan(learning_rate=3e-3)), small_task, seed) for seed in (1, 2, 3)]
    whole = run_jobs(jobs, SHORT)
    rest = run_jobs(jobs, SHORT, done={whole[1].key})
    assert [r.seed for r in rest] == [1, 3]
    assert [r.cost for r in rest] == [whole[0].cost, whole[2].cost]


def test_tuning_halves_the_candidates_and_keeps_the_cheapest(small_task: Task) -> None:
    tried = [Constant(LoopPlan(learning_rate=10 ** (-5 + 0.2 * i), batch=1)) for i in range(16)]
    ran: list[RunRecord] = []
    winner, share, decisions = tune_competitor(tried, [small_task], SHORT, on_run=ran.append)
    assert [own.runs for own in plan_rounds(16, [small_task])] == [16, 0, 0, 1]
    assert len(ran) == 17
    alone = [average_share(run_controller(c, [small_task], TUNING_SEEDS[:1], SHORT)) for c in tried]
    assert winner == tried[alone.index(min(alone))]
    assert share == pytest.approx(average_share(run_controller(winner, [small_task], TUNING_SEEDS, SHORT)), rel=1e-3)
    assert decisions > 0
    others = [replace(small_task, name=name) for name in (f"{small_task.name.split(':')[0]}:9", "another:0")]
    assert [own.runs for own in plan_rounds(64, [small_task, *others])] == [64 * 2, 0, 4 * 1, 2 * 3]
    many = [replace(small_task, name=f"{family}:{draw}") for family in "abcdefghijkl" for draw in (0, 1)]
    assert [own.runs for own in plan_rounds(128, many)] == [128 * 4, 32 * 6, 8 * 14, 4 * 24]


def test_a_winner_at_the_edge_of_its_range_is_found_out() -> None:
    tried = list(COMPETITORS["Muon"].candidates(64)) + list(COMPETITORS["constant"].candidates(64))
    muons, constants = tried[:64], tried[64:]
    by_rate = sorted(muons, key=lambda own: own.settings["lr"])  # type: ignore[attr-defined]
    assert [name for name, *_ in find_edges(by_rate[0], muons)][:1] == ["lr"]
    assert "lr" not in [name for name, *_ in find_edges(by_rate[32], muons)]
    adamw = sorted(
        (own for own in constants if own.start.optimizer == "adamw"), key=lambda own: own.start.learning_rate
    )
    ((name, value, low, high),) = find_edges(adamw[-1], constants)
    assert (name, value, high) == ("learning_rate", adamw[-1].start.learning_rate, adamw[-1].start.learning_rate)
    assert low == adamw[0].start.learning_rate
    assert find_edges(adamw[len(adamw) // 2], constants) == []


def test_an_open_loop_follows_its_plans_and_then_the_last(small_task: Task) -> None:
    plans = (LoopPlan(learning_rate=1e-5), LoopPlan(learning_rate=1e-5, batch=1), LoopPlan("sgd", 1e-5))
    controller = OpenLoop(plans)
    longer = EpisodeSettings(budget_factor=1.0)
    (record,) = run_controller(controller, [small_task], [3], longer, traced=True)
    followed = [point.plan for point in record.trace]
    assert [(p.batch, p.optimizer) for p in followed[:4]] == [(2, "adamw"), (1, "adamw"), (2, "sgd"), (2, "sgd")]
    assert len(followed) >= 4
    assert not controller.rolls_back
    rolling = OpenLoop((LoopPlan(), LoopPlan(rollback=True)))
    assert rolling.rolls_back
    assert run_controller(rolling, [small_task], [3], SHORT)[0].cost > 0


def test_an_agents_schedule_replayed_on_its_own_run_is_its_run(small_task: Task) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(len(OBSERVATION_NAMES), 10))
    agent = Policy(network, KnobSet("lr+batch"), LoopPlan(learning_rate=3e-3))
    (own,) = run_controller(agent, [small_task], [4], SHORT, traced=True)
    plans = tuple(point.plan for point in own.trace)
    (again,) = run_controller(OpenLoop(plans), [small_task], [4], SHORT, traced=True)
    for ours, theirs in zip(own.trace, again.trace, strict=False):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
    assert own.trace[0].cost > again.trace[0].cost  # the looks are saved


def test_the_easier_target_is_reached_when_a_trace_says_so(small_task: Task) -> None:
    assert small_task.calibration is not None
    easier = 1.3 * small_task.calibration.target
    task = small_task.with_calibration(replace(small_task.calibration, easier=easier))
    controller = Constant(LoopPlan(learning_rate=3e-3))
    (record,) = run_controller(controller, [task], [3], EpisodeSettings(budget_factor=2.0), traced=True)
    below = [point.loss <= easier for point in record.trace]
    first = next(i for i in range(1, len(below)) if below[i - 1] and below[i]) - 1
    assert record.easier_cost == record.trace[first].cost
    assert record.to_easier().hit
    assert record.to_easier().cost == record.easier_cost
    (missed,) = run_controller(Constant(LoopPlan(learning_rate=0.0)), [task], [3], SHORT)
    assert missed.easier_cost == missed.budget
    assert missed.to_easier().outcome == "miss"
    with pytest.raises(LoopwrightError, match="no easier target"):
        replace(record, easier_cost=None).to_easier()
