"""What a controller is told, what it is not, and what the last changes brought."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.envs.episode.batch import EpisodeBatch
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.episode.start import Start
from loopwright.envs.loop.arithmetic import One
from loopwright.envs.loop.changes import RUINED, Changes
from loopwright.envs.loop.context import INFORMATION, Context, check_prices
from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.envs.loop.knobs import find_positions
from loopwright.envs.loop.observation import OBSERVATION_NAMES
from loopwright.envs.loop.plan import OPTIMIZERS, LoopPlan, name_column, stack_plans
from loopwright.inner_tasks import Task

PRICES = dict(zip(OPTIMIZERS, (1.6, 32.0, 0.0, 1600.0), strict=True))
WHOLE = Context(target=0.5, budget=4000.0, parameters=10_000, samples=2000, prices=PRICES)
# The features that say nothing where a kind of information is withheld.
TOLD = {
    "control": ("control_given", "control_progress", "control_trend", "control_zscore", "control_from_best",
                "generalisation_gap", "gap_trend"),
    "target": ("target_given", "target_distance", "target_depth"),
    "budget": ("budget_given", "budget_left", "budget_passes"),
    "size": ("size_given", "parameters", "samples", "passes", "budget_passes"),
    "prices": ("prices_given", *(f"price_{name}" for name in OPTIMIZERS)),
}  # fmt: skip


def test_features_of_a_context_are_logarithms() -> None:
    found = WHOLE.features()
    assert (found["parameters"], found["samples"]) == (0.0, pytest.approx(math.log10(2)))
    assert found["budget_passes"] == pytest.approx(math.log(2))
    assert [found[f"price_{name}"] for name in OPTIMIZERS] == pytest.approx([-1, math.log10(2), -3, 2])
    assert all(found[f"{name}_given"] == 1 for name in INFORMATION)


def seen_after(task: Task, withheld: tuple[str, ...]) -> tuple[list[dict[str, float]], EpisodeBatch]:
    batch = EpisodeBatch(task, 1, EpisodeSettings(prices=PRICES))
    batch.begin([0], [Start(task, 3, LoopPlan(learning_rate=3e-3), withheld=withheld)])
    seen = [batch.observation[0].tolist()]
    for _ in range(5):
        batch.decide(batch.plans)
        seen.append(batch.observation[0].tolist())
    return [dict(zip(OBSERVATION_NAMES, row, strict=True)) for row in seen], batch


@pytest.mark.parametrize("kind", INFORMATION)
def test_what_is_withheld_is_not_told(kind: str, small_task: Task) -> None:
    (told, whole), (partly, batch) = seen_after(small_task, ()), seen_after(small_task, (kind,))
    for name in TOLD[kind]:
        assert all(row[name] == 0 for row in partly)
        assert any(row[name] != 0 for row in told)
    if kind != "control":  # without which everything else is measured against the training loss
        others = set(OBSERVATION_NAMES) - set(TOLD[kind])
        assert all(a[name] == b[name] for a, b in zip(told, partly, strict=True) for name in others)
    assert batch.budget.cost == whole.budget.cost if kind != "control" else batch.budget.cost < whole.budget.cost


def test_without_a_control_split_progress_is_counted_from_the_first_decision(small_task: Task) -> None:
    told, partly = (seen_after(small_task, withheld)[0] for withheld in ((), ("control",)))
    assert partly[0]["train_progress"] == partly[0]["target_distance"] == partly[0]["target_depth"] == 0
    assert partly[1]["train_progress"] == 0
    fallen = partly[5]["train_progress"] - partly[1]["train_progress"]
    assert fallen == pytest.approx(told[5]["train_progress"] - told[1]["train_progress"], abs=1e-5)
    assert partly[5]["target_distance"] < partly[1]["target_distance"] == pytest.approx(partly[1]["target_depth"])
    assert partly[5]["gradient_cosine"] == told[5]["gradient_cosine"]


def test_other_information_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown kind of information 'luck'; known: control, target"):
        WHOLE.without(["luck"])
    with pytest.raises(LoopwrightError, match="no price for an update of muon; prices were given for sgd"):
        check_prices({"sgd": 1.0}, ["sgd", "muon"])
    for price in (-1.0, math.nan, math.inf):
        with pytest.raises(LoopwrightError, match="of an update of sgd must be finite and 0 or more; got"):
            check_prices({"sgd": price}, ["sgd"])


class Told:
    """Changes of one run, told of one decision after another."""

    def __init__(self, plan: LoopPlan) -> None:
        self.changes = Changes(One())
        self.changes.note(*self._read(plan))

    def _read(self, plan: LoopPlan) -> tuple[dict[str, float], dict[str, float]]:
        fields = name_column(stack_plans([plan]), 0)
        return fields, find_positions(fields, One())

    def decide(self, plan: LoopPlan, below: float, *, restored: bool = False) -> dict[str, float]:
        fields, positions = self._read(plan)
        self.changes.learn(fields, positions, below, True, restored)
        self.changes.note(fields, positions)
        return self.changes.features()


@given(st.floats(0.01, 1), st.sampled_from([-1, 1]))
def test_what_a_change_brought_has_its_direction(gain: float, direction: int) -> None:
    run = Told(LoopPlan(learning_rate=1e-2))
    assert run.decide(LoopPlan(learning_rate=1e-2), 0.0)["brought_lr"] == 0
    moved = LoopPlan(learning_rate=1e-2 * 2.0**direction)
    first = run.decide(moved, gain)
    assert first["brought_lr"] == pytest.approx(direction * gain, rel=1e-5)
    assert first["brought_momentum"] == 0
    assert run.decide(moved, 0.0)["brought_lr"] == first["brought_lr"]  # the last change stands


def test_a_change_that_ruins_the_run_is_remembered_as_that() -> None:
    run = Told(LoopPlan(learning_rate=1e-2))
    found = run.decide(LoopPlan(learning_rate=1.0, momentum=0.5), math.nan, restored=True)
    assert (found["brought_lr"], found["brought_momentum"]) == (RUINED, -RUINED)
    assert math.isfinite(run.decide(LoopPlan(learning_rate=1e-2), math.inf)["brought_lr"])


def test_the_learning_rate_stands_against_the_start_and_the_largest_that_was_safe() -> None:
    run = Told(LoopPlan(learning_rate=1e-3))
    assert run.decide(LoopPlan(learning_rate=4e-3), 0.1)["rate_from_safe"] == 0
    risen = run.decide(LoopPlan(learning_rate=16e-3), -0.1)
    assert risen["rate_from_safe"] == pytest.approx(math.log(4), rel=1e-5)
    assert risen["rate_since_start"] == pytest.approx(math.log(16), rel=1e-5)
    lower = run.decide(LoopPlan(learning_rate=2e-3), 0.1)
    assert lower["rate_from_safe"] == pytest.approx(-math.log(2), rel=1e-5)
    # Sgd counts in another unit: what was known moves along.
    switched = run.decide(LoopPlan(learning_rate=0.2, optimizer="sgd"), 0.1)
    assert switched["rate_from_safe"] == pytest.approx(-math.log(2), rel=1e-5)
    assert switched["rate_since_start"] == pytest.approx(math.log(2), rel=1e-5)
    back = run.decide(LoopPlan(learning_rate=4e-3, optimizer="muon"), 0.1)
    assert back["rate_since_start"] == pytest.approx(math.log(2), rel=1e-5)
