"""The observation: named, bounded, finite, and blind to the scale of the loss."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.envs.episodes import EpisodeBatch, EpisodeSettings
from loopwright.envs.observation import FEATURES, LIMIT, OBSERVATION_NAMES, Observer
from loopwright.envs.plan import LoopPlan, stack_plans
from loopwright.envs.telemetry import SUMS, summarise
from loopwright.inner_tasks import Split, Task
from loopwright.inner_tasks.errors import LoopwrightError

LOSS_OR_GRADIENT = [name for name, _ in FEATURES if name not in ("clip_margin",)]


def make_sums(loss: float, norm: float, updates: int = 8, ticks: int = 16) -> torch.Tensor:
    values = {
        "ticks": ticks, "loss": loss * ticks, "loss_square": 1.1 * loss**2 * ticks,
        "microbatch_square": 2 * norm**2 * ticks, "updates": updates, "gradient_square": norm**2 * updates,
        "log_gradient_norm": math.log(norm) * updates,
        "log_gradient_norm_square": (math.log(norm) ** 2 + 0.1) * updates,
        "gradient_cosine": 0.3 * updates, "momentum_cosine": 0.2 * updates, "log_momentum_ratio": -0.5 * updates,
        "clipped": 0.0, "log_step_ratio": -6.5 * updates,
    }  # fmt: skip
    return torch.tensor([[values[name]] for name in SUMS])


def observe_run(losses: list[float], scale: float) -> torch.Tensor:
    observer = Observer(1)
    observer.begin([0], torch.tensor([2.3 * scale]), [0.5 * scale])
    plans, everyone = stack_plans([LoopPlan()]), torch.ones(1, dtype=torch.bool)
    seen = []
    for step, loss in enumerate(losses):
        telemetry = summarise(make_sums(loss * scale, 0.5 * loss * scale))
        left = torch.tensor([1 - step / len(losses)])
        seen.append(observer.observe(telemetry, torch.tensor([1.1 * loss * scale]), plans, left, everyone))
    return torch.cat(seen)


@settings(max_examples=30)
@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=12), st.sampled_from([1e-3, 10.0, 1e3]))
def test_scaling_the_loss_changes_nothing(losses: list[float], scale: float) -> None:
    columns = [OBSERVATION_NAMES.index(name) for name in LOSS_OR_GRADIENT]
    plain, scaled = observe_run(losses, 1.0)[:, columns], observe_run(losses, scale)[:, columns]
    torch.testing.assert_close(plain, scaled, rtol=0, atol=1e-3)


@settings(max_examples=40)
@given(st.lists(st.sampled_from([1e-30, 1e-3, 1.0, 1e10, 1e30, math.inf, math.nan]), min_size=1, max_size=6))
def test_whatever_the_run_does_the_observation_is_finite_and_bounded(losses: list[float]) -> None:
    observer = Observer(1)
    observer.begin([0], torch.tensor([2.3]), [None])
    for loss in losses:
        sums = make_sums(1.0, 1.0) * loss
        seen = observer.observe(summarise(sums), torch.tensor([loss]), stack_plans([LoopPlan()]), torch.ones(1),
                                torch.ones(1, dtype=torch.bool))  # fmt: skip
        assert torch.isfinite(seen).all()
        assert seen.abs().max() <= LIMIT


def test_names_match_the_columns_and_a_missing_target_is_flagged() -> None:
    assert len(set(OBSERVATION_NAMES)) == len(OBSERVATION_NAMES)
    observer = Observer(2)
    observer.begin([0, 1], torch.tensor([2.0, 2.0]), [1.0, None])
    untrained = torch.zeros(2, dtype=torch.bool)
    seen = observer.observe(None, torch.zeros(2), stack_plans([LoopPlan()] * 2), torch.ones(2), untrained)
    assert seen.shape == (2, len(OBSERVATION_NAMES))
    value = dict(zip(OBSERVATION_NAMES, seen.T, strict=True))
    assert value["target_given"].tolist() == [1, 0]
    assert value["target_depth"].tolist() == pytest.approx([math.log(2), 0])
    assert value["budget_left"].tolist() == [1, 1]
    assert value["plan_clip"].tolist() == [1, 1]


def run_observations(task: Task) -> np.ndarray:
    batch = EpisodeBatch(task, 2, EpisodeSettings())
    batch.begin([0, 1], [task, task], [1, 2], [LoopPlan()] * 2)
    seen = [batch.observation.numpy().copy()]
    for _ in range(4):
        batch.decide(batch.plans)
        seen.append(batch.observation.numpy().copy())
    return np.array(seen)


def test_no_observation_depends_on_the_target_split(small_task: Task) -> None:
    shuffled = Split(small_task.target.inputs.flip(0) * 3, 1 - small_task.target.labels)
    blind = Task(small_task.name, small_task.model, small_task.train, small_task.control, shuffled,
                 small_task.classes, small_task.initial_scale, small_task.calibration)  # fmt: skip
    np.testing.assert_array_equal(run_observations(small_task), run_observations(blind))


def test_looking_at_the_control_split_is_charged(small_task: Task) -> None:
    looking = EpisodeBatch(small_task, 1, EpisodeSettings())
    blind = EpisodeBatch(small_task, 1, EpisodeSettings(), looks=False)
    for batch in (looking, blind):
        batch.begin([0], [small_task], [0], [LoopPlan()])
        batch.decide(batch.plans)
    assert blind.cost[0].item() == 256
    assert looking.cost[0].item() == pytest.approx(256 + 2 * looking.settings.control_batch * looking.unit.forward)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(LoopwrightError, match="ticks_per_decision must be 1 or more, got 0"):
        EpisodeSettings(ticks_per_decision=0)
    with pytest.raises(LoopwrightError, match="budget_factor"):
        EpisodeSettings(budget_factor=math.inf)
