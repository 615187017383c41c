"""The guard: what it takes for an alarm, what it restores, and how seldom a guarded run ends in ruins."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loopwright.agents.controllers.schedules import Scheduled
from loopwright.agents.controllers.simple import Constant, OpenLoop
from loopwright.agents.judging.runner import run_controller
from loopwright.envs.engine.lanes import Lanes
from loopwright.envs.episode.batch import EpisodeBatch
from loopwright.envs.episode.decision import DIVERGED, RUNNING
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.episode.snapshots import LaneSnapshots
from loopwright.envs.episode.start import Start
from loopwright.envs.loop.arithmetic import Many, One
from loopwright.envs.loop.controller import Controller, View
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.guard import FINE, GRADIENT_SPIKE, LOSS_SPIKE, NOT_FINITE, SNAPSHOT_EVERY, Guard
from loopwright.envs.loop.ledger import read_ledger
from loopwright.envs.loop.observation import OBSERVATION_NAMES
from loopwright.envs.loop.plan import ROW, LoopPlan, name_column, name_rows, stack_plans
from loopwright.envs.loop.telemetry import PROBE, SUMS, Statistics, summarise
from loopwright.envs.training_loop import TrainingLoopEnv
from loopwright.inner_tasks import Task
from loopwright.scripts.benchmarks import run_wild

WILD = LoopPlan(optimizer="sgd", learning_rate=1e30, batch=1)
STATE = ("weights", "momentum", "second_moment", "gradient_sum", "average")


def watch(guard: Guard, statistics: Statistics, plans: torch.Tensor) -> tuple[int, bool]:
    """The verdict on a decision of one run, and whether it is given up."""
    rows = plans.numpy()
    with np.errstate(all="ignore"):
        telemetry = summarise(statistics, rows[ROW["clip"]], Many(1))
        verdict, given_up = guard.watch(statistics.finite, telemetry, name_rows(plans))
    return int(verdict[0]), bool(given_up[0])


def guarded(task: Task, lanes: int = 1, limit: int = 5) -> tuple[Lanes, Guard]:
    engine = Lanes(task, lanes)
    engine.load(range(lanes), [task] * lanes, range(lanes))
    guard = Guard((LaneSnapshots(engine), LaneSnapshots(engine)), lanes, limit)
    guard.begin(np.arange(lanes), np.full(lanes, 0.7))
    return engine, guard


def test_a_restored_run_is_the_run_that_never_diverged(small_task: Task) -> None:
    calm = stack_plans([LoopPlan(batch=2, average=8.0, order="hard-first")])
    engine, guard = guarded(small_task)
    stored = None
    for decision in range(1, 3 * SNAPSHOT_EVERY):
        watch(guard, engine.run(calm, 16), calm)
        if decision == SNAPSHOT_EVERY:
            stored = [row.clone() for row in engine.state.rows()]
    wild = stack_plans([WILD])
    assert watch(guard, engine.run(wild, 16), wild) == (NOT_FINITE, False)
    assert stored is not None
    # The snapshot of decision 8 was still on probation, that of decision 4 had passed.
    for kept, now in zip(stored[:-1], engine.state.rows()[:-1], strict=True):
        assert torch.equal(kept, now)
    assert guard.rate_scale.item() == 0.5
    assert guard.interventions.item() == 1


def crafted(loss: float, norm: float) -> Statistics:
    sums = {"ticks": 16.0, "cost": 256.0, "updates": 16.0, "loss": 16 * loss, "loss_square": 16 * loss**2}
    update = dict.fromkeys(PROBE, 1.0) | {"GG": norm**2, "PP": norm**2, "GP": 0.5 * norm**2}
    window = np.array([[[update[name]] for name in PROBE]] * 4)
    return Statistics(np.array([[sums[name]] for name in SUMS]), window)


@pytest.mark.parametrize(
    ("loss", "norm", "verdict"),
    [(1.1, 1.1, FINE), (10.0, 1.0, LOSS_SPIKE), (1.0, 50.0, GRADIENT_SPIKE), (float("nan"), 1.0, NOT_FINITE),
     (1.0, float("inf"), NOT_FINITE), (2.0, 5.0, FINE), (0.1, 0.01, FINE)],
)  # fmt: skip
def test_what_is_an_alarm(loss: float, norm: float, verdict: int, small_task: Task) -> None:
    _, guard = guarded(small_task)
    plans = stack_plans([LoopPlan()])
    rng = np.random.default_rng(0)
    for _ in range(8):
        calm = crafted(float(rng.uniform(0.9, 1.1)), float(rng.uniform(0.8, 1.2)))
        assert watch(guard, calm, plans)[0] == FINE
    assert watch(guard, crafted(loss, norm), plans)[0] == verdict


def test_a_loss_far_above_the_one_before_training_is_an_alarm_at_once(small_task: Task) -> None:
    for loss, verdict in ((6.9, FINE), (7.1, LOSS_SPIKE)):
        _, guard = guarded(small_task)
        assert watch(guard, crafted(loss, 1.0), stack_plans([LoopPlan()]))[0] == verdict


class Told:
    """A slot that only says what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bool]] = []

    def save(self, chosen: Any) -> None:
        self.asked.append(("save", bool(np.all(chosen))))

    def restore(self, chosen: Any) -> None:
        self.asked.append(("restore", bool(np.all(chosen))))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([1e-3, 0.5, 1.0, 1.2, 6.0, 40.0, math.nan, math.inf]), st.floats(1e-3, 1e3),
            st.sampled_from(["shuffled", "hard-first"]), st.sampled_from([1, 2]),
        ),
        min_size=1, max_size=30,
    )
)  # fmt: skip
def test_one_run_is_guarded_as_one_of_many(run: list[tuple[float, float, str, int]]) -> None:
    slots = [(Told(), Told()) for _ in range(2)]
    many, one = Guard(slots[0], 1, 3), Guard(slots[1], None, 3)
    many.begin(np.array([0]), np.array([1.0]))
    one.begin(0, 1.0)
    for loss, norm, order, batch in run:
        statistics, plans = crafted(loss, norm), stack_plans([LoopPlan(order=order, batch=batch)])
        fields = name_column(plans, 0)
        telemetry = summarise(statistics, fields["clip"], One())
        alone = one.watch(bool(statistics.finite[0]), telemetry, fields)
        assert watch(many, statistics, plans) == alone
        assert (many.interventions[0], many.rate_scale[0]) == (one.interventions, one.rate_scale)
    assert [slot.asked for slot in slots[0]] == [slot.asked for slot in slots[1]]


def test_another_data_order_is_no_alarm(small_task: Task) -> None:
    _, guard = guarded(small_task)
    for _ in range(8):
        watch(guard, crafted(1.0, 1.0), stack_plans([LoopPlan()]))
    assert watch(guard, crafted(6.0, 50.0), stack_plans([LoopPlan(order="hard-first")]))[0] == FINE


def test_after_its_last_intervention_the_next_alarm_ends_the_run(small_task: Task) -> None:
    batch = EpisodeBatch(small_task, 1, EpisodeSettings(guard=2))
    batch.begin([0], [Start(small_task, 0, WILD)])
    outcomes = [int(batch.decide(stack_plans([WILD])).outcome[0]) for _ in range(3)]
    assert outcomes == [RUNNING, RUNNING, DIVERGED]
    assert torch.isfinite(batch.lanes.state.weights).all()


def test_the_guard_shows_in_the_observation_the_plan_and_the_charge(small_task: Task) -> None:
    batch = EpisodeBatch(small_task, 1, EpisodeSettings())
    batch.begin([0], [Start(small_task, 0)])
    batch.decide(batch.plans)
    spent = batch.budget.cost.item()
    decision = batch.decide(stack_plans([WILD]))
    seen = dict(zip(OBSERVATION_NAMES, batch.observation[0].tolist(), strict=True))
    assert decision.verdict[0] == NOT_FINITE
    assert (seen["restored"], seen["guard_left"]) == (1, pytest.approx(0.8))
    assert batch.plans[ROW["learning_rate"], 0].item() == pytest.approx(0.5e30)
    assert batch.budget.cost.item() > spent + 200
    batch.decide(stack_plans([LoopPlan()]))
    assert batch.observation[0, OBSERVATION_NAMES.index("restored")] == 0


def test_rollback_returns_to_the_best_state_and_refunds_nothing(small_task: Task) -> None:
    batch = EpisodeBatch(small_task, 1, EpisodeSettings(guard=0), rolls_back=True)
    batch.begin([0], [Start(small_task, 0)])
    for _ in range(3):
        batch.decide(stack_plans([LoopPlan(learning_rate=3e-3)]))
    good = batch.lanes.state.weights.clone()
    ruin = stack_plans([LoopPlan(learning_rate=100.0)])
    for _ in range(2):
        batch.decide(ruin)
    assert not torch.equal(batch.lanes.state.weights, good)
    spent = batch.budget.cost.item()
    batch.decide(stack_plans([LoopPlan(learning_rate=0.0, rollback=True)]))
    assert torch.equal(batch.lanes.state.weights, good)
    assert batch.budget.cost.item() > spent
    plain = EpisodeBatch(small_task, 1, EpisodeSettings())
    plain.begin([0], [Start(small_task, 0)])
    with pytest.raises(LoopwrightError, match="rolls_back=False"):
        plain.decide(stack_plans([LoopPlan(rollback=True)]))


def test_an_alarm_after_a_rollback_does_not_undo_it(small_task: Task) -> None:
    batch = EpisodeBatch(small_task, 1, EpisodeSettings(), rolls_back=True)
    batch.begin([0], [Start(small_task, 0)])
    for _ in range(3):
        batch.decide(stack_plans([LoopPlan(learning_rate=3e-3)]))
    best = batch.lanes.state.weights.clone()
    for _ in range(3 * SNAPSHOT_EVERY):  # long enough for the guard to take another state for the good one
        batch.decide(stack_plans([LoopPlan(learning_rate=0.3, optimizer="sgd", momentum=0.0, order="easy-first")]))
    assert not torch.equal(batch.lanes.state.weights, best)
    kept = batch._best_states
    assert kept is not None
    stored = kept._states._stored.weights.clone()
    decision = batch.decide(stack_plans([LoopPlan(optimizer="sgd", learning_rate=1e30, batch=1, rollback=True)]))
    assert decision.verdict[0] == NOT_FINITE
    assert torch.equal(batch.lanes.state.weights, stored)


@pytest.mark.slow
def test_of_1000_wild_runs_none_ends_non_finite_and_every_intervention_is_on_record(tmp_path: Path) -> None:
    guarded_runs = run_wild(guard=5, ledgers=tmp_path)
    assert guarded_runs["runs"] == 1000
    assert guarded_runs["not_finite"] == 0
    paths = list(tmp_path.glob("*.jsonl"))
    assert len(paths) == 1000
    recorded = [entry["verdict"] for path in paths for entry in read_ledger(path).entries]
    assert len(recorded) - recorded.count("fine") == guarded_runs["interventions"] > 100
    unguarded = run_wild(guard=0)
    assert unguarded["not_finite"] > 0
    assert unguarded["ruined"] > 100
    assert guarded_runs["ruined"] < 10
    assert guarded_runs["lost"] == 0


def test_whoever_goes_on_into_ruins_is_given_up_in_a_good_state(small_task: Task) -> None:
    """Losses of ten times that before training end a run that has spent its interventions; lesser spikes do not."""
    engine, guard = guarded(small_task, limit=1)
    before = engine.state.weights.clone()
    wild = stack_plans([LoopPlan(optimizer="sgd", learning_rate=3e3, batch=1)])
    assert watch(guard, engine.run(wild, 16), wild) == (LOSS_SPIKE, False)
    verdict, given_up = watch(guard, engine.run(wild, 16), wild)
    assert (verdict, given_up) == (LOSS_SPIKE, True)
    assert torch.equal(engine.state.weights, before)


def test_weights_that_explode_in_the_last_updates_show_in_the_control_loss(small_task: Task) -> None:
    engine, guard = guarded(small_task)
    before, calm = engine.state.weights.clone(), stack_plans([LoopPlan()])
    statistics = engine.run(calm, 16)
    telemetry = summarise(statistics, calm.numpy()[ROW["clip"]], Many(1))
    verdict, _ = guard.watch(statistics.finite, telemetry, name_rows(calm), np.full(1, 7.1))
    assert verdict[0] == LOSS_SPIKE
    assert torch.equal(engine.state.weights, before)


def test_a_state_worse_than_that_before_training_is_never_the_good_one(small_task: Task) -> None:
    """Neither the guard's snapshot nor what a rollback returns to."""
    engine, guard = guarded(small_task)
    before, calm = engine.state.weights.clone(), stack_plans([LoopPlan(optimizer="sgd", learning_rate=0.0)])
    guard.begin(np.arange(1), np.full(1, 0.1))  # as if it had begun far better than it is now
    for _ in range(3 * SNAPSHOT_EVERY):
        watch(guard, engine.run(calm, 16), calm)
    engine.state.weights.mul_(2)
    wild = stack_plans([WILD])
    assert watch(guard, engine.run(wild, 16), wild)[0] == NOT_FINITE
    assert torch.equal(engine.state.weights, before)

    batch = EpisodeBatch(small_task, 1, EpisodeSettings(guard=0), rolls_back=True)
    batch.begin([0], [Start(small_task, 0)])
    begun = batch.lanes.state.weights.clone()
    batch.decide(stack_plans([LoopPlan(optimizer="sgd", learning_rate=30.0, batch=1)]))
    assert not torch.equal(batch.lanes.state.weights, begun)
    batch.decide(stack_plans([LoopPlan(optimizer="sgd", learning_rate=0.0, rollback=True)]))
    assert torch.equal(batch.lanes.state.weights, begun)


@pytest.mark.parametrize("controller", [Scheduled(WILD, "cosine"), OpenLoop((WILD,)), Constant(WILD)])
def test_every_controller_is_executed_with_the_guards_halvings(controller: Controller, small_task: Task) -> None:
    """One that sets its learning rate knows nothing of them, one that leaves the plan alone finds them there."""
    settings = EpisodeSettings(budget_factor=0.3)
    (record,) = run_controller(controller, [small_task], [0], settings, traced=True)
    rates = [point.plan.learning_rate for point in record.trace]
    wanted = [1e30]
    if isinstance(controller, Scheduled):
        spent = torch.tensor([point.cost / record.budget for point in record.trace])
        plans = stack_plans([WILD] * len(rates))
        seen = View(torch.zeros(len(rates), 1), plans, torch.cat([torch.zeros(1), spent[:-1]]), torch.ones(len(rates)))
        wanted = controller.decide(seen)[ROW["learning_rate"]].tolist()
    for decision in range(4):
        assert rates[decision] == pytest.approx(wanted[min(decision, len(wanted) - 1)] * 0.5**decision, rel=1e-3)


def test_the_environment_tells_of_the_guard_and_can_do_without() -> None:
    plan = WILD
    env = TrainingLoopEnv(tasks=["breast-cancer:1"], plan=plan, knobs="clip")
    env.reset(seed=0)
    *_, terminated, _, info = env.step(np.array([2]))
    assert (info["verdict"], info["outcome"], terminated) == ("not finite", "running", False)
    env = TrainingLoopEnv(tasks=["mixtures:2"], plan=plan, knobs="clip", settings=EpisodeSettings(guard=0))
    env.reset(seed=0)
    *_, terminated, _, info = env.step(np.array([2]))
    assert (info["verdict"], info["outcome"], terminated) == ("fine", "diverged", True)
