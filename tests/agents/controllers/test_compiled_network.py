"""A policy's steps for one run, compiled, beside those of numpy."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from loopwright.agents.controllers import policy as policies
from loopwright.agents.controllers.bundle import list_policies, load_policy
from loopwright.agents.controllers.policy import Policy, build_network
from loopwright.agents.controllers.switch import make_switch
from loopwright.envs.loop.arithmetic import One
from loopwright.envs.loop.compiled import find_c_compiler
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import LIMIT, OBSERVATION_NAMES
from loopwright.envs.loop.plan import LoopPlan, name_column, stack_plans

pytestmark = pytest.mark.skipif(find_c_compiler() is None, reason="needs a C compiler")
OBSERVATIONS = np.random.default_rng(0).uniform(-LIMIT, LIMIT, (200, len(OBSERVATION_NAMES))).astype(np.float32)


def make_policy(action: str = "discrete", activation: str = "tanh", widths: tuple[int, ...] = (9, 7)) -> Policy:
    torch.manual_seed(0)
    knobs = KnobSet("all", action)
    network = build_network([len(OBSERVATION_NAMES), *widths, knobs.outputs], activation)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.7)
    return Policy(network, knobs, LoopPlan())


def compare(policy: Policy) -> None:
    for seen in OBSERVATIONS[:, None]:
        np.testing.assert_allclose(policy.steps_of_one(seen), policy.steps(seen)[0], atol=1e-4)


@pytest.mark.parametrize("name", list_policies())
def test_shipped_policies_take_the_same_steps(name: str) -> None:
    policy = load_policy(name)
    compare(policy)
    assert policy._compiled is not None


@pytest.mark.parametrize("widths", [(9, 7), (), (1,), (33, 64, 5)])
def test_networks_of_any_widths_do(widths: tuple[int, ...]) -> None:
    policy = make_policy(widths=widths)
    compare(policy)
    assert policy._compiled is not None


@pytest.mark.parametrize(("action", "activation"), [("box", "tanh"), ("flat", "tanh"), ("discrete", "relu")])
def test_other_kinds_are_left_to_numpy(action: str, activation: str) -> None:
    policy = make_policy(action, activation)
    compare(policy)
    assert policy._compiled is None


def test_without_a_compiler_numpy_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "is_possible", lambda: False)
    policy = make_policy()
    compare(policy)
    assert policy._compiled is None


def test_a_knob_that_is_to_be_left_alone_is_to_the_bit() -> None:
    switch = make_switch(load_policy("core"), load_policy("adamw"), "price_muon", -1.0)
    fields, seen = name_column(stack_plans([LoopPlan("muon", 0.1, clip=1.37, batch=2)]), 0), OBSERVATIONS[:1].copy()
    seen[:, OBSERVATION_NAMES.index("price_muon")] = 0.0
    moved = switch.knobs.move_fields(switch.steps_of_one(seen), fields, One())
    assert {name: moved[name] for name in ("optimizer", "clip", "batch")} == {
        name: fields[name] for name in ("optimizer", "clip", "batch")
    }


def test_a_policy_that_has_acted_can_be_sent_to_another_process() -> None:
    policy = make_policy()
    wanted = policy.steps_of_one(OBSERVATIONS[:1])
    assert policy._compiled is not None
    again = pickle.loads(pickle.dumps(policy._compiled))
    assert again(OBSERVATIONS[0]) == wanted
