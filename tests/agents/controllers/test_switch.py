"""Two policies as one, of which a feature says which acts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from loopwright.agents.controllers.bundle import load_policy, save_policy
from loopwright.agents.controllers.other_knobs import change_knobs
from loopwright.agents.controllers.policy import Policy, build_network
from loopwright.agents.controllers.switch import make_switch
from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import LIMIT, OBSERVATION_NAMES
from loopwright.envs.loop.plan import LoopPlan, stack_plans

FEATURES = len(OBSERVATION_NAMES)
COLUMN = OBSERVATION_NAMES.index("price_muon")


def make_policy(seed: int, knobs: str, widths: tuple[int, ...] = (9, 7), activation: str = "tanh") -> Policy:
    torch.manual_seed(seed)
    moved = KnobSet(knobs)
    network = build_network([FEATURES, *widths, moved.outputs], activation)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.7)
    training = {"algorithm": "PPO", "decisions": 100 + seed, "suite": "demo", "settings": {"ticks_per_decision": 16}}
    return Policy(network, moved, LoopPlan(batch=1 + seed), training=training)


def observe(price: float) -> npt.NDArray[np.float32]:
    seen = np.random.default_rng(0).uniform(-LIMIT, LIMIT, (500, FEATURES)).astype(np.float32)
    seen[:, COLUMN] = price
    return seen


def test_on_either_side_it_acts_as_the_expert_for_it(tmp_path: Path) -> None:
    below, above = make_policy(0, "lr+momentum+optimizer"), make_policy(1, "momentum+lr", (5, 4))
    save_policy(make_switch(below, above, "price_muon", -1.0), tmp_path / "switch.safetensors")
    switch = load_policy(tmp_path / "switch.safetensors")
    wide = change_knobs(above, below.knobs, 1.0)
    for price, expert in ((-LIMIT, below), (-3.0, below), (-1.3, below), (-0.7, wide), (0.0, wide), (LIMIT, wide)):
        np.testing.assert_allclose(switch.steps(observe(price)), expert.steps(observe(price)), atol=2e-4)
    assert np.abs(below.steps(observe(0)) - wide.steps(observe(0))).max() > 0.1
    assert switch.start == below.start != above.start


def test_a_knob_that_the_expert_lacks_is_left_alone_to_the_bit() -> None:
    switch = make_switch(load_policy("core"), load_policy("adamw"), "price_muon", -1.0)
    plans = stack_plans([LoopPlan("muon", 0.1, clip=1.37, batch=2)] * 500)
    dear, free = (switch.knobs.move(switch.steps(observe(price)), plans) for price in (0.0, -3.0))
    names = ("optimizer", "clip", "batch")
    for row in (list(LoopPlan().as_json()).index(name) for name in names):
        assert torch.equal(dear[row], plans[row])
        assert not torch.equal(free[row], plans[row])


def test_a_knob_that_is_raised_comes_to_its_upper_bound() -> None:
    switch = make_switch(load_policy("core"), load_policy("adamw"), "price_muon", -1.0, ("clip",))
    plans = stack_plans([LoopPlan("muon", 0.1, clip=1.0, batch=2)] * 500)
    row = list(LoopPlan().as_json()).index("clip")
    found = []
    for _ in range(4):
        plans = switch.knobs.move(switch.steps(observe(0.0)), plans)
        assert len(plans[row].unique()) == 1
        found.append(plans[row, 0].item())
    assert found == [4.0, 16.0, float("inf"), float("inf")]


def test_its_card_says_what_it_was_made_of() -> None:
    below, above = make_policy(0, "lr+momentum"), make_policy(1, "lr")
    card = make_switch(below, above, "price_muon", -1.0).training
    assert card["switch"] == {"feature": "price_muon", "threshold": -1.0, "raised": []}
    assert [own["sha256"] for own in card["experts"]] == [below.fingerprint, above.fingerprint]
    assert [own["decisions"] for own in card["experts"]] == [100, 101]
    assert (card["decisions"], card["suite"]) == (201, "demo")


@pytest.mark.parametrize(
    ("below", "above", "message"),
    [
        (
            make_policy(0, "lr"),
            make_policy(0, "lr+momentum"),
            "moves momentum, which the one below it, of lr, does not",
        ),
        (make_policy(0, "lr", (4,)), make_policy(0, "lr"), "one has discrete actions and 1 layers of tanh units"),
        (make_policy(0, "lr"), make_policy(0, "lr", activation="relu"), "2 layers of relu units"),
        (make_policy(0, "lr"), replace(make_policy(0, "lr"), lstm=nn.LSTM(FEATURES, 4)), "after an LSTM"),
        (
            make_policy(0, "lr"),
            replace(make_policy(0, "lr"), training={"settings": {"ticks_per_decision": 8}}),
            "their decisions take 16 and 8 ticks",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(below: Policy, above: Policy, message: str) -> None:
    with pytest.raises(LoopwrightError, match=message):
        make_switch(below, above, "price_muon", -1.0)


@pytest.mark.parametrize("knob", ["clip", "lr"])
def test_only_a_knob_that_the_one_above_lacks_can_be_raised(knob: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown knob to be raised '{knob}'; known: momentum"):
        make_switch(make_policy(0, "lr+momentum"), make_policy(0, "lr"), "price_muon", -1.0, (knob,))


def test_a_feature_that_there_is_not_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown feature 'price'"):
        make_switch(make_policy(0, "lr"), make_policy(1, "lr"), "price", 0.0)


def test_the_shipped_one_is_made_of_two_that_are_shipped() -> None:
    shipped = load_policy("all")
    made = make_switch(load_policy("core"), load_policy("adamw"), "price_muon", -1.0, ("clip",))
    assert shipped.training == made.training
    assert (shipped.start, shipped.knobs.name) == (made.start, made.knobs.name)
    for name, value in made.weights.items():
        torch.testing.assert_close(shipped.weights[name], value)
