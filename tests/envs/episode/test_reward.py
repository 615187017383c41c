"""Reward, cost and calibration."""

import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loopwright.envs.engine.cost import measure_cost
from loopwright.envs.episode.batch import EpisodeBatch
from loopwright.envs.episode.calibration import Calibrator, list_configurations
from loopwright.envs.episode.decision import DIVERGED, HIT, MISS
from loopwright.envs.episode.hold_rule import hold_losses
from loopwright.envs.episode.progress import ProgressMeter
from loopwright.envs.episode.reward import LEAST_SHARE, REWARDS, Judgement
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.episode.start import Start
from loopwright.envs.loop.errors import UncalibratedTaskError
from loopwright.envs.loop.observation import OBSERVATION_NAMES
from loopwright.envs.loop.plan import LoopPlan
from loopwright.inner_tasks import MLP, Calibration, ConvNet, Split, Task, get_task
from loopwright.inner_tasks.losses import compute_guessing_loss
from loopwright.inner_tasks.targets import read_targets
from loopwright.inner_tasks.task import SPLITS

CURVE = Calibration(0.5, 400.0, ((100.0, 2.0), (200.0, 1.0), (400.0, 0.5)))


def phi(*losses: float) -> list[float]:
    meter = ProgressMeter(len(losses))
    meter.begin(range(len(losses)), [CURVE] * len(losses))
    return meter.phi(torch.tensor(losses)).tolist()


def test_progress_reads_the_calibrated_curve() -> None:
    assert phi(3.0, 2.0, 1.5, 1.0, 0.75, 0.5, 0.1, math.nan, math.inf) == pytest.approx(
        [0, 0.25, 0.375, 0.5, 0.75, 1, 1, 0, 0]
    )


@given(st.lists(st.floats(0.01, 5), min_size=2, max_size=10))
def test_less_loss_is_never_less_progress(losses: list[float]) -> None:
    values = phi(*sorted(losses))
    assert values == sorted(values, reverse=True)
    assert all(0 <= value <= 1 for value in values)


def test_a_short_curve_beside_a_long_one() -> None:
    short = Calibration(0.5, 200.0, ((100.0, 2.0), (200.0, 0.5)))
    meter = ProgressMeter(2)
    meter.begin([0], [short])
    meter.begin([1], [CURVE])
    assert meter.phi(torch.tensor([1.25, 1.5])).tolist() == pytest.approx([0.75, 0.375])


def episode_return(task: Task, plan: LoopPlan, reward: str = "progress") -> tuple[float, EpisodeBatch, int]:
    batch = EpisodeBatch(task, 1, EpisodeSettings(reward=reward, guard=0))
    batch.begin([0], [Start(task, 5, plan)])
    total = 0.0
    while True:
        decision = batch.decide(batch.plans)
        total += float(decision.reward[0])
        if decision.done[0]:
            return total, batch, int(decision.outcome[0])


def test_the_return_of_a_hit_is_one_minus_the_share_of_the_budget(small_task: Task) -> None:
    easy = small_task.with_calibration(Calibration(0.4, 3000.0, ((500.0, 0.65), (3000.0, 0.4))))
    total, batch, outcome = episode_return(easy, LoopPlan(learning_rate=5e-3))
    assert outcome == HIT
    assert total == pytest.approx(1 - float(batch.budget.cost[0] / batch.budget.total[0]), abs=1e-5)
    assert batch.hit.cost[0] < batch.budget.cost[0]  # two evaluations in a row, charged to the first


@pytest.mark.parametrize("reward", REWARDS)
def test_every_reward_prefers_the_faster_run(reward: str, small_task: Task) -> None:
    easy = small_task.with_calibration(Calibration(0.4, 3000.0, ((500.0, 0.65), (3000.0, 0.4))))
    fast, slow, never = (episode_return(easy, LoopPlan(learning_rate=rate), reward)[0] for rate in (1e-2, 1e-3, 1e-7))
    assert fast > slow > never
    if reward == "anytime":
        assert 0 <= never < fast <= 1
    if reward == "time":
        total, batch, _ = episode_return(easy, LoopPlan(learning_rate=1e-2), reward)
        assert total == pytest.approx(1 - float(batch.budget.cost[0] / batch.budget.total[0]), abs=1e-5)
        assert never == pytest.approx(-1, abs=1e-5)


def judged(
    before: float, phi: float, share: float, spent: float, outcome: str = "", discount: float = 1.0, credit: float = 0.0
) -> Judgement:
    values = (torch.tensor([v]) for v in (before, phi, share, spent))
    ended = (torch.tensor([outcome == name]) for name in ("hit", "miss", "diverged"))
    return Judgement(*values, *ended, torch.tensor([credit]), discount)


def test_anytime_is_the_mean_progress_over_the_budget() -> None:
    def earned(phi: float, share: float, spent: float, outcome: str = "") -> float:
        return REWARDS["anytime"](judged(0.0, phi, share, spent, outcome)).item()

    assert earned(0.5, 0.1, 0.3) == pytest.approx(0.05)
    assert earned(1.0, 0.1, 0.3, "hit") == pytest.approx(0.8)
    assert earned(0.5, 0.1, 0.3, "diverged") == pytest.approx(0.05)
    assert REWARDS["time"](judged(0.0, 0.5, 0.1, 0.3, "diverged")).item() == pytest.approx(-0.8)


def test_an_open_run_earns_by_how_far_it_came() -> None:
    """As a hit with so many times the budget would; no less than a miss."""

    def earned(reward: str, phi: float, credit: float, outcome: str = "miss", spent: float = 1.0) -> float:
        return REWARDS[reward](judged(0.0, phi, spent, spent, outcome, credit=credit)).item()

    assert earned("progress", 0.4, 0.4) == pytest.approx(0.4 - 1)
    assert earned("time", 0.4, 0.4) == pytest.approx(0.4 - 1)
    assert earned("log-progress", 1.0, 0.0, "hit", 0.5) == pytest.approx(1 - 0.5 * math.log(0.5 / LEAST_SHARE))
    assert earned("log-progress", 0.5, 0.5) == pytest.approx(1 - 0.5 * math.log(2 / LEAST_SHARE))
    assert earned("log-progress", 0.1, 0.1) == pytest.approx(earned("log-progress", 0.1, 0.0))


def test_an_open_run_ends_with_its_budget_and_says_nothing_of_a_target(small_task: Task) -> None:
    hard = small_task.with_calibration(Calibration(0.4, 3000.0, ((500.0, 0.69), (3000.0, 0.4))))
    batch = EpisodeBatch(hard, 2, EpisodeSettings(reward="log-progress"))
    plan = LoopPlan(learning_rate=3e-4)
    batch.begin([0, 1], [Start(hard, 5, plan, withheld=("target",), open_budget=0.5), Start(hard, 5, plan)])
    assert batch.budget.total.tolist() == [1500.0, 9000.0]
    assert batch.observation[:, OBSERVATION_NAMES.index("target_given")].tolist() == [0.0, 1.0]
    earned, phi = torch.zeros(2), torch.zeros(2)
    while bool(batch.live[0]):
        decision = batch.decide(batch.plans)
        earned, phi = earned + decision.reward, batch._phi
    assert decision.outcome.tolist()[0] == MISS
    assert bool(batch.live[1])
    assert 0.2 < phi[0] < 1
    assert earned[0].item() == pytest.approx(1 - 0.5 * math.log(1 / phi[0].item() / LEAST_SHARE), abs=1e-4)


PATHS = st.lists(st.floats(0, 1), min_size=1, max_size=8).map(sorted)


@pytest.mark.parametrize("reward", ["progress", "log-progress"])
@given(path=PATHS, outcome=st.sampled_from(["hit", "miss", "diverged"]), discount=st.floats(0.5, 1.0))
def test_shaping_changes_no_discounted_return(reward: str, path: list[float], outcome: str, discount: float) -> None:
    """Discounted, the shaped return is that without shaping: phi is 0 where an episode begins and where it ends."""
    share = 1 / (len(path) + (outcome != "miss"))
    shaped = plain = before = 0.0
    for number, phi in enumerate(path):
        last = outcome if number == len(path) - 1 else ""
        step = judged(before, phi, share, share * (number + 1), last, discount)
        shaped += discount**number * REWARDS[reward](step).item()
        flat = replace(step, phi_before=torch.zeros(1), phi=torch.zeros(1))
        plain += discount**number * REWARDS[reward](flat).item()
        before = phi
    assert shaped == pytest.approx(plain, abs=1e-5)


def test_halving_a_cost_is_worth_as_much_wherever_it_stands() -> None:
    def returned(decisions: int, outcome: str = "hit") -> float:
        steps = [judged(0.0, 0.0, 0.05, 0.05 * (number + 1)) for number in range(decisions)]
        steps[-1] = judged(0.0, 0.0, 0.05, 0.05 * decisions, outcome)
        return sum(REWARDS["log-progress"](step).item() for step in steps)

    halved = 0.5 * math.log(2)
    assert returned(10) - returned(20) == pytest.approx(halved, abs=1e-5)
    assert returned(2) - returned(4) == pytest.approx(halved, abs=1e-5)
    assert returned(20, "miss") == pytest.approx(returned(20) - 1, abs=1e-5)
    assert returned(4, "diverged") == pytest.approx(returned(20, "miss"), abs=1e-5)
    assert returned(1) == pytest.approx(1 - 0.5 * math.log(0.05 / LEAST_SHARE), abs=1e-5)


def test_a_near_miss_is_worth_no_more_than_a_hit() -> None:
    def returned(outcome: str, spent: float) -> float:
        first = REWARDS["progress"](judged(0.0, 0.9, 0.5 * spent, 0.5 * spent)).item()
        return first + REWARDS["progress"](judged(0.9, 0.9, 0.5 * spent, spent, outcome)).item()

    assert returned("miss", 1.0) == pytest.approx(-1)
    assert 0.5 * returned("hit", 0.8) + 0.5 * returned("miss", 1.0) > returned("miss", 1.0)


@pytest.mark.parametrize("reward", ["progress", "time"])
def test_a_miss_and_a_divergence_cost_the_whole_budget_however_near_they_came(reward: str, small_task: Task) -> None:
    near = small_task.with_calibration(Calibration(1e-9, 600.0, ((100.0, 0.69), (200.0, 1e-8), (600.0, 1e-9))))
    total, batch, outcome = episode_return(near, LoopPlan(learning_rate=1e-2), reward)
    assert (outcome, batch._phi[0] > 0.1) == (MISS, True)
    assert total == pytest.approx(-1, abs=1e-5)
    relu = get_task("mixtures:2").with_calibration(near.calibration)  # tanh units would keep the loss finite
    total, batch, outcome = episode_return(relu, LoopPlan(optimizer="sgd", learning_rate=1e30), reward)
    assert outcome == DIVERGED
    assert total == pytest.approx(-1, abs=1e-5)
    assert batch.budget.cost[0] < batch.budget.total[0]


def test_cost_counts_flops() -> None:
    mlp = measure_cost(MLP(64, (32, 32), 10))
    forward, first = 2 * (64 * 32 + 32 * 32 + 32 * 10), 2 * 64 * 32
    assert mlp.flops == 3 * forward - first  # the first layer needs no input gradient
    assert mlp.forward == pytest.approx(forward / mlp.flops)
    last = 2 * 32 * 10
    assert mlp.path == pytest.approx((1, (3 * forward - first - first - 2 * 32 * 32) / mlp.flops,
                                      (forward + last) / mlp.flops))  # fmt: skip
    assert mlp.single[0] == pytest.approx((forward + last + 2 * 32 * 32 + first) / mlp.flops)
    assert 0.3 < measure_cost(ConvNet(8, (8, 16), 10)).forward < 0.45


def test_held_needs_two_in_a_row() -> None:
    assert hold_losses(torch.tensor([[3.0, 1.0, 2.0, 1.0, 1.0]])).tolist() == [[3.0, 2.0, 2.0, 1.0]]


def test_the_search_covers_both_optimizers_and_all_horizons() -> None:
    space = list_configurations()
    assert {c.plan.optimizer for c in space} == {"sgd", "adamw"}
    assert len({c.horizon for c in space}) == 4
    assert len({c.plan.learning_rate for c in space}) == len(space) == 64


def test_calibration_is_reproducible_and_reached_by_most_reruns() -> None:
    settings = EpisodeSettings(ticks_per_decision=4)
    bare = get_task("quadratic:0").with_calibration(None)
    first, words = Calibrator(bare, settings, decisions=48).calibrate(bare)
    again, _ = Calibrator(bare, settings, decisions=48).calibrate(bare)
    assert first == again
    assert "learning_rate" in words
    assert first is not None
    assert first.curve[0][1] > first.target


@pytest.mark.parametrize(
    ("change", "reason"), [("labels", "out of reach: .* a guess to 0.69"), ("inputs", "too short")]
)
def test_a_task_that_measures_nothing_is_dropped_with_the_reason(change: str, reason: str, small_task: Task) -> None:
    """Labels that have nothing to do with the inputs; inputs that give them away at once."""
    generator = torch.Generator().manual_seed(0)
    splits = {}
    for name in SPLITS:
        split = getattr(small_task, name)
        labels = torch.randint(2, (len(split),), generator=generator)
        inputs = split.inputs + (20.0 * labels[:, None] - 10 if change == "inputs" else 0.0)
        splits[name] = Split(inputs, labels)
    task = replace(small_task, calibration=None, **splits)  # type: ignore[arg-type]
    calibration, why = Calibrator(task, EpisodeSettings(ticks_per_decision=4), decisions=12).calibrate(task)
    assert calibration is None
    assert re.search(reason, why)


def test_a_target_lies_no_lower_than_rounding_errors() -> None:
    floor = 1e-3 * compute_guessing_loss("cross-entropy", get_task("spirals:2").target.labels)
    lowest = min(calibration.target for calibration in read_targets().targets.values())
    assert get_task("spirals:2").calibration.target >= floor * (1 - 1e-6)  # type: ignore[union-attr]
    assert lowest > 1e-5


def test_a_task_without_a_target_is_no_episode(small_task: Task) -> None:
    bare = small_task.with_calibration(None)
    with pytest.raises(UncalibratedTaskError, match=r"breast-cancer:1 has no calibrated target"):
        EpisodeBatch(bare, 1, EpisodeSettings()).begin([0], [Start(bare, 0)])
