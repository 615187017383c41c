"""The observation: named, bounded, finite, and blind to the scale of the loss."""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.envs.engine.cost import measure_cost
from loopwright.envs.episode.batch import EpisodeBatch
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.episode.start import Start
from loopwright.envs.loop.context import INFORMATION, Context
from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.knobs import KNOBS
from loopwright.envs.loop.observation import FEATURES, LIMIT, OBSERVATION_NAMES, Needs
from loopwright.envs.loop.observer import Observer, Reading
from loopwright.envs.loop.plan import CHOICES, LoopPlan, name_column, name_rows, stack_plans
from loopwright.envs.loop.probe import Probe
from loopwright.envs.loop.telemetry import PROBE, SUMS, Statistics, summarise
from loopwright.inner_tasks import Split, Task

FloatArray = npt.NDArray[np.floating]
BLIND = {
    kind: [f.name for f in FEATURES if f.invariance in kinds]
    for kind, kinds in (("scale", ("scale", "affine")), ("affine", ("affine",)))
}


# Of one update, but for the norm: each entry in units of its square.
USUAL = {"measured": 1.0, "paired": 1.0, "GG": 1.0, "MM": 0.4, "WW": 3.0, "GM": 0.2, "PP": 1.0, "SS": 1e-5, "GP": 0.3,
         "GS": -1e-3, "PS": -2e-3, "MS": -3e-3}  # fmt: skip
UNITLESS = ("measured", "paired", "WW", "SS")


def make_statistics(loss: float, norm: float, updates: int = 4, **changes: float) -> Statistics:
    """What one run measured: the same in each of the last ``updates`` ticks."""
    sums = {"ticks": 16.0, "cost": 256.0, "loss": 16 * loss, "loss_square": 1.1 * 16 * loss**2, "updates": updates}
    sums |= {name: changes.pop(name) for name in SUMS if name in changes}
    entries = {
        name: value * (1.0 if name in UNITLESS else norm if name in ("GS", "PS", "MS") else norm**2)
        for name, value in USUAL.items()
    } | changes
    window = np.array([[[entries[name]] for name in PROBE]] * updates).reshape(updates, len(PROBE), 1)
    return Statistics(np.array([[sums[name]] for name in SUMS]), window)


def observe(
    observer: Observer,
    statistics: Statistics | None,
    control_loss: float = 1.0,
    *,
    plan: LoopPlan | None = None,
    left: float = 1.0,
    restored: bool = False,
    guard_left: float = 0.0,
) -> FloatArray:
    """What ``observer`` of one run says after a decision, ``[1, features]``; None is before the first."""
    plan = plan or LoopPlan()
    telemetry = None if statistics is None else summarise(statistics, plan.clip, observer.arithmetic)
    fields = name_column(stack_plans([plan]), 0)
    return observer.observe(
        Reading(telemetry, control_loss, fields, left, statistics is not None, restored, guard_left)
    )


def observe_run(losses: list[float], scale: float, shift: float = 0.0) -> FloatArray:
    observer = Observer()
    observer.begin([0], np.array([2.3 * scale + shift]), [Context(target=0.5 * scale + shift, budget=1e3)])
    seen = []
    for step, loss in enumerate(losses):
        statistics = make_statistics(loss * scale + shift, 0.5 * loss * scale)
        left = 1 - step / len(losses)
        seen.append(observe(observer, statistics, 1.1 * loss * scale + shift, left=left))
    return np.concatenate(seen)


@settings(max_examples=30)
@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=12), st.sampled_from([1e-3, 10.0, 1e3]))
def test_scaling_the_loss_changes_nothing(losses: list[float], scale: float) -> None:
    columns = [OBSERVATION_NAMES.index(name) for name in BLIND["scale"]]
    assert len(columns) >= 21
    plain, scaled = observe_run(losses, 1.0)[:, columns], observe_run(losses, scale)[:, columns]
    np.testing.assert_allclose(plain, scaled, rtol=0, atol=1e-3)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.sampled_from([0.5, 2.0]), st.sampled_from([0.0, 3.0]))
def test_the_zscores_are_blind_to_a_shift_as_well(tenths: list[int], scale: float, shift: float) -> None:
    losses = [value / 10 for value in tenths]
    columns = [OBSERVATION_NAMES.index(name) for name in BLIND["affine"]]
    assert len(columns) == 2
    plain, moved = observe_run(losses, 1.0)[:, columns], observe_run(losses, scale, shift)[:, columns]
    np.testing.assert_allclose(plain, moved, rtol=2e-2, atol=5e-2)


def one_feature(name: str, decisions: list[Statistics]) -> float:
    observer = Observer()
    observer.begin([0], np.array([2.0]), [Context(target=0.5)])
    for statistics in decisions:
        seen = observe(observer, statistics, plan=LoopPlan(clip=2.0))
    return float(seen[0, OBSERVATION_NAMES.index(name)])


@given(st.floats(0.05, 0.95), st.floats(0.01, 100))
def test_the_noise_scale_is_noise_over_signal(signal: float, square: float) -> None:
    statistics = make_statistics(1.0, 1.0, GG=square, GP=square * signal)
    assert one_feature("gradient_noise_scale", [statistics]) == pytest.approx(math.log((1 - signal) / signal), abs=1e-3)


@given(st.floats(-3, 3), st.floats(0.01, 100))
def test_curvature_is_the_turn_over_the_slope(curvature: float, slope: float) -> None:
    statistics = make_statistics(1.0, 1.0, GS=curvature * slope, PS=0.0, MS=-slope)
    assert one_feature("curvature", [statistics]) == pytest.approx(curvature, abs=1e-3)


@given(st.floats(0.01, 50))
def test_the_clip_margin_compares_threshold_and_norm(norm: float) -> None:
    expected = min(max(math.log(2.0 / norm), -LIMIT), LIMIT)
    assert one_feature("clip_margin", [make_statistics(1.0, norm)]) == pytest.approx(expected, abs=1e-3)


@given(st.floats(0.1, 10), st.floats(1.01, 3))
def test_trends_tell_rising_from_falling_on_every_timescale(loss: float, factor: float) -> None:
    for speed in ("fast", "slow", "long"):
        name = f"train_trend_{speed}"
        rising = one_feature(name, [make_statistics(loss, 1.0), make_statistics(loss * factor, 1.0)])
        falling = one_feature(name, [make_statistics(loss, 1.0), make_statistics(loss / factor, 1.0)])
        assert rising > 0 > falling
    rise = [make_statistics(loss, 1.0), make_statistics(loss * factor, 1.0)]
    assert one_feature("train_trend_long", rise) >= one_feature("train_trend_fast", rise)


@given(st.floats(0.05, 5), st.floats(0.05, 5))
def test_gap_and_distances_are_logarithms_of_ratios(train: float, control: float) -> None:
    observer = Observer()
    observer.begin([0], np.array([2.0]), [Context(target=0.5)])
    seen = observe(observer, make_statistics(train, 1.0, loss_square=16 * 1.25 * train**2), control)
    value = dict(zip(OBSERVATION_NAMES, seen[0].tolist(), strict=True))
    assert value["generalisation_gap"] == pytest.approx(math.log(control / train), abs=1e-3)
    assert value["target_distance"] == pytest.approx(math.log(control / 0.5), abs=1e-3)
    assert value["loss_noise"] == pytest.approx(0.5, abs=1e-3)
    assert value["control_from_best"] == pytest.approx(max(0.0, math.log(control / 2.0)), abs=1e-3)


def quadratic_run(curvature: float, rate: float) -> float:
    """The curvature feature of gradient descent on curvature / 2 x^2, told by its gradients."""
    probe, x, gradient = Probe([torch.zeros(1, 1)]), 1.0, 0.0
    for _ in range(4):
        momentum, gradient = gradient, curvature * x  # without averaging the momentum is the gradient before
        probe.measure(*([torch.tensor([[value]])] for value in (gradient, momentum, x)))
        x -= rate * gradient
    return one_feature("curvature", [make_statistics(1.0, 1.0)._replace(window=probe.read())])


@given(st.floats(0.1, 10), st.floats(0.1, 2.4))
def test_on_a_quadratic_curvature_is_the_eigenvalue_times_the_rate(curvature: float, edge: float) -> None:
    assert quadratic_run(curvature, edge / curvature) == pytest.approx(edge, rel=1e-2)


@settings(max_examples=40)
@given(st.lists(st.sampled_from([1e-30, 1e-3, 1.0, 1e10, 1e30, math.inf, math.nan]), min_size=1, max_size=6))
def test_whatever_the_run_does_the_observation_is_finite_and_bounded(losses: list[float]) -> None:
    observer = Observer()
    observer.begin([0], np.array([2.3]), [Context()])
    for loss in losses:
        with np.errstate(all="ignore"):
            statistics = Statistics(*(loss * own for own in make_statistics(1.0, 1.0)))
        seen = observe(observer, statistics, loss)
        assert np.isfinite(seen).all()
        assert np.abs(seen).max() <= LIMIT


wild = st.sampled_from([0.0, 1e-10, 1e-3, 0.5, 1.0, 2.0, 1e10, math.inf, math.nan])
decisions = st.tuples(
    wild, st.sampled_from([0.0, 1e-10, 0.1, 1.0, 30.0]), st.integers(0, 4), st.booleans(), st.floats(1e-4, 1e2),
    st.sampled_from(CHOICES["optimizer"]),
)  # fmt: skip


@settings(max_examples=40)
@given(st.lists(decisions, min_size=1, max_size=8), st.sets(st.sampled_from(INFORMATION)))
def test_one_run_is_seen_as_one_of_many_is(
    run: list[tuple[float, float, int, bool, float, str]], withheld: set[str]
) -> None:
    context = Context(target=0.5, budget=1e3, parameters=1000, samples=500).without(withheld)
    one, many = Observer(), Observer(2)
    one.begin([0], np.array([2.3]), [context])
    many.begin([0, 1], np.array([2.3, 1.0]), [context, Context()])
    for loss, norm, updates, restored, rate, optimizer in run:
        plan, other = LoopPlan(optimizer, rate, clip=1.0), make_statistics(1.0, 1.0, updates)
        with np.errstate(all="ignore"):
            statistics = make_statistics(loss, norm, updates)
            both = Statistics(*(np.concatenate(pair, -1) for pair in zip(statistics, other, strict=True)))
            both = Statistics(*(own.astype(np.float32) for own in both))
            mask = np.array([restored, False])
            seen = many.observe(
                Reading(
                    summarise(both, np.float32(1.0), many.arithmetic), np.array([loss, 1.0], np.float32),
                    name_rows(stack_plans([plan, LoopPlan()])), np.float32(1.0), np.array([True, True]), mask,
                )
            )  # fmt: skip
        alone = observe(one, statistics, loss, plan=plan, restored=restored)
        bounded = np.where(np.isfinite(alone[0]), alone[0], LIMIT)
        np.testing.assert_allclose(seen[0], bounded, rtol=1e-2, atol=2e-2)


def test_names_match_the_columns_and_a_missing_target_is_flagged() -> None:
    assert len(set(OBSERVATION_NAMES)) == len(OBSERVATION_NAMES)
    observer = Observer(2)
    observer.begin([0, 1], np.array([2.0, 2.0]), [Context(target=1.0, budget=1e3), Context()])
    nobody = np.zeros(2, bool)
    plans = name_rows(stack_plans([LoopPlan()] * 2))
    with np.errstate(all="ignore"):
        seen = observer.observe(Reading(None, np.zeros(2), plans, np.ones(2), nobody, nobody))
    assert seen.shape == (2, len(OBSERVATION_NAMES))
    value = dict(zip(OBSERVATION_NAMES, seen.T, strict=True))
    assert value["target_given"].tolist() == [1, 0]
    assert value["target_depth"].tolist() == pytest.approx([math.log(2), 0])
    assert value["budget_given"].tolist() == value["budget_left"].tolist() == [1, 0]
    assert value["plan_clip"].tolist() == [1, 1]
    changes = {f"brought_{name}" for name, knob in KNOBS.items() if not knob.command}
    assert {f.name for f in FEATURES} | changes | {f"plan_{knob}" for knob in KNOBS} == set(OBSERVATION_NAMES)


def test_gradient_features_wait_for_the_first_update() -> None:
    """A first decision without an update says nothing about the gradient, and nothing of it is averaged."""
    nothing = make_statistics(1.0, 1.0, updates=0)
    names = ("gradient_since_start", "gradient_level", "gradient_zscore", "step_ratio")
    assert [one_feature(name, [nothing]) for name in names] == [0.0] * 4
    assert one_feature("clip_margin", [nothing]) == LIMIT
    later = [make_statistics(1.0, 1e-4), make_statistics(1.0, 2e-4)]
    for name in names:
        assert one_feature(name, [nothing, *later]) == one_feature(name, later)
        assert one_feature(name, [nothing, later[0], nothing, later[1]]) == one_feature(name, later)
    assert one_feature("gradient_since_start", [nothing, *later]) == pytest.approx(math.log(2), abs=1e-3)


def test_losses_of_zero_have_no_noise() -> None:
    solved = make_statistics(0.0, 1e-6)
    assert one_feature("loss_noise", [solved]) == 0


def test_a_controller_that_needs_the_control_loss_sees_nothing_else(small_task: Task) -> None:
    whole, part, nothing = (EpisodeBatch(small_task, 1, EpisodeSettings(), needs=needs) for needs in
                            (Needs.OBSERVATION, Needs.CONTROL_LOSS, Needs.NOTHING))  # fmt: skip
    shown = OBSERVATION_NAMES.index("control_progress")
    for batch in (whole, part, nothing):
        batch.begin([0], [Start(small_task, 0)])
        batch.decide(batch.plans)
    assert part.observation[0, shown] == whole.observation[0, shown] != 0
    assert part.observation.count_nonzero() == 1
    assert nothing.observation.count_nonzero() == 0
    assert part.budget.cost == whole.budget.cost > nothing.budget.cost


def test_what_the_guard_undid_is_forgotten() -> None:
    observer = Observer()
    observer.begin([0], np.array([2.0]), [Context(target=0.5)])

    def see(loss: float, undone: bool) -> dict[str, float]:
        row = observe(observer, make_statistics(loss, 1.0), loss, restored=undone, guard_left=0.6)
        return dict(zip(OBSERVATION_NAMES, row[0].tolist(), strict=True))

    see(1.0, False)
    calm = see(1.0, False)
    ruined = see(math.nan, True)
    assert (ruined["restored"], ruined["guard_left"]) == (1, pytest.approx(0.6))
    for name in ("train_progress", "control_progress", "gradient_level", "curvature"):
        assert ruined[name] == calm[name]
    assert ruined["decisions"] > calm["decisions"]


@pytest.mark.parametrize("ruin", ["random actions", "exploding", "zero gradient", "constant loss"])
def test_observations_of_real_runs_are_finite_and_bounded(ruin: str, small_task: Task) -> None:
    task, plan = small_task, LoopPlan(batch=1)
    if ruin == "exploding":
        plan = LoopPlan(optimizer="sgd", learning_rate=1e12, batch=1)
    elif ruin in ("zero gradient", "constant loss"):
        # inputs of 0 leave only biases a gradient, a learning rate of 0 the loss as it is
        blank = Split(torch.zeros_like(task.train.inputs), task.train.labels)
        task = replace(task, train=blank, control=Split(torch.zeros_like(task.control.inputs), task.control.labels))
        plan = LoopPlan(learning_rate=0.0 if ruin == "constant loss" else 1e-3, batch=16)
    knobs, rng = KnobSet("all"), np.random.default_rng(0)
    for guard in (0, 5):
        batch = EpisodeBatch(task, 4, EpisodeSettings(guard=guard), rolls_back=True)
        batch.begin(range(4), [Start(task, seed, plan) for seed in range(4)])
        for _ in range(8):
            assert torch.isfinite(batch.observation).all()
            assert batch.observation.abs().max() <= LIMIT
            sizes = [len(knob.steps) for knob in knobs.knobs]
            actions = rng.integers(sizes, size=(4, len(sizes)))
            moved = knobs.apply(actions, batch.plans, batch.step_ratio)
            batch.decide(moved if ruin == "random actions" else batch.plans)


def run_observations(task: Task) -> np.ndarray:
    batch = EpisodeBatch(task, 2, EpisodeSettings())
    batch.begin([0, 1], [Start(task, 1), Start(task, 2)])
    seen = [batch.observation.numpy().copy()]
    for _ in range(4):
        batch.decide(batch.plans)
        seen.append(batch.observation.numpy().copy())
    return np.array(seen)


def test_no_observation_depends_on_the_target_split(small_task: Task) -> None:
    shuffled = Split(small_task.target.inputs.flip(0) * 3, 1 - small_task.target.labels)
    blind = Task(small_task.name, small_task.model, small_task.train, small_task.control, shuffled,
                 small_task.loss, small_task.initial_scale, small_task.calibration)  # fmt: skip
    np.testing.assert_array_equal(run_observations(small_task), run_observations(blind))


def test_looking_at_the_control_split_is_charged(small_task: Task) -> None:
    looking = EpisodeBatch(small_task, 1, EpisodeSettings())
    blind = EpisodeBatch(small_task, 1, EpisodeSettings(), needs=Needs.NOTHING)
    for batch in (looking, blind):
        batch.begin([0], [Start(small_task, 0)])
        batch.decide(batch.plans)
    assert blind.budget.cost[0].item() == 256
    assert looking.budget.cost[0].item() == pytest.approx(
        256 + 2 * looking.settings.control_batch * measure_cost(small_task.model).forward
    )


def test_bad_settings_are_refused() -> None:
    with pytest.raises(LoopwrightError, match="ticks_per_decision must be 1 or more, got 0"):
        EpisodeSettings(ticks_per_decision=0)
    with pytest.raises(LoopwrightError, match="budget_factor"):
        EpisodeSettings(budget_factor=math.inf)
    with pytest.raises(LoopwrightError, match="guard must be 0 or more, got -1"):
        EpisodeSettings(guard=-1)
    with pytest.raises(UnknownNameError, match="unknown reward 'fame'; known: progress"):
        EpisodeSettings(reward="fame")
