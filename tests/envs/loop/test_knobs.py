"""Knobs: what an action does to a plan, and what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loopwright.envs.loop.arithmetic import Many, One
from loopwright.envs.loop.errors import InvalidActionError, LoopwrightError, UnknownNameError
from loopwright.envs.loop.knob_set import KNOB_SETS, KnobSet
from loopwright.envs.loop.knobs import KNOBS, find_positions
from loopwright.envs.loop.plan import ROW, LoopPlan, name_column, name_rows, stack_plans, unstack_plans


def moved(knobs: str, action: list[int], plan: LoopPlan | None = None) -> LoopPlan:
    (after,) = unstack_plans(KnobSet(knobs).apply(np.array([action]), stack_plans([plan or LoopPlan()])))
    return after


@pytest.mark.parametrize("name", [*KNOB_SETS, "lr+batch"])
@pytest.mark.parametrize("action", ["discrete", "box"])
def test_the_middle_action_leaves_the_plan_bit_identical(name: str, action: str) -> None:
    knobs = KnobSet(name, action)
    plans = stack_plans([LoopPlan(learning_rate=0.00123, momentum=0.77, clip=1.7, batch=3, average=32.0)])
    still = np.array([[k.still for k in knobs.knobs]]) if action == "discrete" else np.zeros((1, len(knobs.knobs)))
    assert torch.equal(knobs.apply(still, plans), plans)


def test_each_knob_moves_its_field_and_no_other() -> None:
    for name, knob in KNOBS.items():
        plan = LoopPlan(
            clip=1.0, batch=4, average=32.0, weight_decay=0.01, depth=0.5, keep=0.5, echo=2, second_momentum=0.95,
            optimizer="adamw" if name != "optimizer" else "sgd",
        )  # fmt: skip
        for action in {0, len(knob.steps) - 1} - {knob.still}:
            if name == "optimizer" and action == 0:
                continue  # sgd is the lowest rung
            before, after = stack_plans([plan])[:, 0], stack_plans([moved(name, [action], plan)])[:, 0]
            changed = {field for field, row in ROW.items() if not torch.isclose(before[row], after[row])}
            assert changed == {knob.field}


def test_known_steps() -> None:
    assert [moved("lr", [step]).learning_rate for step in range(7)] == pytest.approx(
        [2e-4, 5e-4, 1e-3 / 1.2, 1e-3, 1.2e-3, 2e-3, 5e-3], rel=1e-5
    )
    assert moved("momentum", [2]).momentum == pytest.approx(0.95)
    assert moved("batch", [2]).batch == 4
    assert moved("average", [2]).average == 8
    assert moved("average", [2], LoopPlan(average=128.0)).average == 512
    assert moved("second_momentum", [0]).second_momentum == pytest.approx(0.992, rel=1e-4)
    assert moved("second_momentum", [1], LoopPlan(second_momentum=0.5)).second_momentum == 0.5
    assert moved("clip", [0]).clip == pytest.approx(8)
    assert moved("clip", [4], LoopPlan(clip=16.0)).clip == math.inf
    assert moved("weight_decay", [2]).weight_decay == pytest.approx(1e-3)
    assert moved("weight_decay", [0], LoopPlan(weight_decay=1e-3)).weight_decay == 0
    assert [moved("optimizer", [step]).optimizer for step in range(5)] == ["sgd", "sgd", "adamw", "sinkgd", "muon"]
    assert moved("depth", [0]).depth == 0.75
    assert moved("keep", [0]).keep == 0.5
    assert moved("order", [2]).order == "hard-first"
    assert moved("echo", [2]).echo == 2
    assert moved("sweep", [0]).sweep == "top-down"


def test_a_rollback_is_asked_for_once() -> None:
    asked = moved("rollback", [1])
    assert asked.rollback
    assert not moved("rollback", [0], asked).rollback
    assert KnobSet("all").rolls_back
    assert not KnobSet("core").rolls_back


def test_a_switch_of_optimizer_takes_the_learning_rate_along() -> None:
    ratio = torch.tensor([50.0])
    plans = stack_plans([LoopPlan(learning_rate=2e-3)])
    sgd = KnobSet("lr+optimizer").apply([[3, 0]], plans, lambda: ratio)
    assert sgd[ROW["learning_rate"]].item() == pytest.approx(0.1)
    for rungs in (3, 4):  # one and two up
        again = KnobSet("lr+optimizer").apply([[3, rungs]], sgd, lambda: ratio)
        assert again[ROW["learning_rate"]].item() == pytest.approx(2e-3)
    muon = KnobSet("lr+optimizer").apply([[3, 4]], plans, lambda: ratio)
    assert (muon[ROW["optimizer"]].item(), muon[ROW["learning_rate"]].item()) == (3, pytest.approx(2e-3))


def unasked() -> torch.Tensor:
    raise AssertionError("nothing was switched")


def test_without_a_switch_the_step_ratio_is_not_even_computed() -> None:
    plans = stack_plans([LoopPlan()])
    assert torch.equal(KnobSet("optimizer").apply([[2]], plans, unasked), plans)


@given(st.lists(st.tuples(*[st.integers(0, len(k.steps) - 1) for k in KNOBS.values()]), min_size=1, max_size=40))
def test_any_sequence_of_actions_stays_in_bounds_and_valid(actions: list[tuple[int, ...]]) -> None:
    knobs, plans = KnobSet("all"), stack_plans([LoopPlan()])
    for action in actions:
        plans = knobs.apply(np.array([action]), plans)
        unstack_plans(plans)  # a LoopPlan validates itself
        positions = find_positions(name_rows(plans), Many(1))
        assert all(-1 <= position <= 1 for position in positions.values())
        alone = find_positions(name_column(plans, 0), One())
        assert alone == pytest.approx({name: float(position[0]) for name, position in positions.items()}, abs=1e-5)


@given(st.sampled_from(list(KNOBS.values())), st.floats(0, 1))
def test_encodings_invert(knob: object, share: float) -> None:
    encoded = np.array([knob.low + share * (knob.high - knob.low)], np.float32)  # type: ignore[attr-defined]
    if knob.whole:  # type: ignore[attr-defined]
        encoded = np.rint(encoded)
    again = np.minimum(knob.encode(Many, knob.decode(Many, encoded)), knob.high)  # type: ignore[attr-defined]
    np.testing.assert_allclose(again, encoded, rtol=1e-3, atol=1e-3)


def test_starting_outside_the_bounds_comes_back_inside_only_when_moved() -> None:
    knobs, plans = KnobSet("lr"), stack_plans([LoopPlan(learning_rate=0.0)])
    assert knobs.apply(np.array([[3]]), plans)[ROW["learning_rate"]].item() == 0.0
    assert knobs.apply(np.array([[6]]), plans)[ROW["learning_rate"]].item() == pytest.approx(5e-6, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "action", "match"),
    [
        ("discrete", [[0, 9]], r"action \[0, 9\] of lane 0 is out of bounds: accepted \[0, 0\] to \[6, 2\]"),
        ("discrete", [[-1, 0]], "out of bounds"),
        ("discrete", [[0.5, 0]], "whole numbers"),
        ("discrete", [[0]], "shape"),
        ("box", [[math.nan, 0]], "finite"),
        ("box", [[0, 1.5]], "out of bounds"),
    ],
)
def test_bad_actions_are_refused(kind: str, action: list[list[float]], match: str) -> None:
    with pytest.raises(InvalidActionError, match=match):
        KnobSet("lr-momentum", kind).apply(np.array(action), stack_plans([LoopPlan()]))


def test_unknown_knobs_are_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown knob or knob set 'warp'; known: lr-momentum"):
        KnobSet("lr+warp")
    with pytest.raises(UnknownNameError, match="kind of action"):
        KnobSet("lr", "dict")
    with pytest.raises(LoopwrightError, match="twice"):
        KnobSet("lr+lr")
