"""The learning rate that is usual for networks of a size: that it is what training tasks say, and how it is used."""

import math

import numpy as np
import pytest
import torch
from test_steering import Loop, make_policy
from torch import nn

from loopwright.agents.steering.attach import attach
from loopwright.agents.steering.optimizer import PlanOptimizer
from loopwright.agents.steering.usual_rate import SPREAD, TRAINED_ON, blend_rates, find_rate_scale, find_usual_rate
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.inner_tasks.models import ModelSpec
from loopwright.inner_tasks.registry import get_shape
from loopwright.inner_tasks.suites import get_suite
from loopwright.inner_tasks.targets import read_targets

pytestmark = pytest.mark.filterwarnings("ignore:.*left as they are")


def test_what_is_usual_is_what_the_best_of_the_training_tasks_have() -> None:
    """A line through the logarithms of size and rate of the best static configurations, where these are AdamW's."""
    targets, sizes, points = read_targets().targets, dict[ModelSpec, int](), []
    for name in get_suite("train").tasks():
        winner, model = targets[name].winner, get_shape(name)[0]
        if winner is None or winner["optimizer"] != "adamw":
            continue
        if model not in sizes:
            sizes[model] = sum(p.numel() for p in model.build().parameters())
        points.append((math.log10(sizes[model]), math.log10(winner["learning_rate"])))
    size, rate = np.array(points).T
    line = np.polyfit(size, rate, 1)
    usual = [math.log10(find_usual_rate(parameters)) for parameters in (100, 10_000)]
    assert np.polyval(line, [2, 4]) == pytest.approx(usual, abs=0.02)
    assert float((rate - np.polyval(line, size)).std()) == pytest.approx(SPREAD, abs=0.01)
    assert sorted(sizes.values())[-1] == pytest.approx(TRAINED_ON, rel=0.05)


def test_rates_of_large_networks_are_smaller_by_what_is_usual() -> None:
    assert find_rate_scale(10) == find_rate_scale(TRAINED_ON) == 1
    assert find_rate_scale(1_000_000) == pytest.approx(find_usual_rate(1_000_000) / find_usual_rate(TRAINED_ON))
    assert find_rate_scale(1_000_000) < 0.2


def test_a_blend_lies_between_on_a_logarithmic_scale() -> None:
    assert blend_rates(1.0, 1e-4, 0.5) == pytest.approx(1e-2)
    assert (blend_rates(1.0, 1e-4, 1.0), blend_rates(1.0, 1e-4, 0.0)) == (1.0, pytest.approx(1e-4))
    assert blend_rates(0.0, 1e-4, 0.5) == 0.0  # who sets it to nothing wants nothing


@pytest.mark.parametrize("own", [1e-5, 1e-2, 10.0])
def test_a_policy_begins_between_the_own_rate_and_the_usual_one(own: float) -> None:
    loop = Loop(lambda parameters: torch.optim.AdamW(parameters, lr=own))
    size = sum(p.numel() for p in loop.model.parameters())
    steering = loop.attach(rate_trust=0.25)
    assert steering.plan["learning_rate"] == pytest.approx(own**0.25 * find_usual_rate(size) ** 0.75)
    assert loop.optimizer.param_groups[0]["lr"] == own  # nothing is changed before the first update
    loop.run(0, 1)
    assert min(own, find_usual_rate(size)) / 5.1 < loop.optimizer.param_groups[0]["lr"] < own * 5.1 + 1


def test_a_large_network_is_seen_by_a_policy_as_one_that_it_knows() -> None:
    """What it sees of the rate, and what it sets, differ by what large networks' rates are smaller by."""
    seen, rates = [], []
    for width in (8, 4000):
        model = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 200))
        optimizer = torch.optim.AdamW(model.parameters())
        size = sum(p.numel() for p in model.parameters())
        steering = attach(optimizer, make_policy(moves="lr"), 320, prices=None, rate_trust=0.0)
        steering.groups.write(steering.plan)
        seen.append(steering._restraint.undo(steering.plan)["learning_rate"])
        rates.append(optimizer.param_groups[0]["lr"])
        assert rates[-1] == pytest.approx(find_usual_rate(size))
    assert rates[1] < rates[0] / 5
    assert seen[0] == pytest.approx(find_usual_rate(8 * 4 + 8 + 8 * 200 + 200))
    assert seen[1] == pytest.approx(find_usual_rate(TRAINED_ON))


def test_limits_are_for_the_rate_that_is_set() -> None:
    model = nn.Sequential(nn.Linear(20, 4000), nn.ReLU(), nn.Linear(4000, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    steering = attach(optimizer, make_policy(moves="lr"), prices=None, limits={"learning_rate": (3e-4, 4e-4)})
    for _ in range(33):
        loss = model(torch.randn(8, 20)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steering.step(loss)
        assert 3e-4 <= optimizer.param_groups[0]["lr"] <= 4e-4 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("make", "moves"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), "lr"),
        (lambda p: torch.optim.Adagrad(p, lr=0.1), "lr"),
        (lambda p: PlanOptimizer(p, 0.1, rule="sgd"), "lr"),
        (lambda p: torch.optim.AdamW(p, lr=0.1), "average"),
    ],
)
def test_other_rates_and_rates_that_are_not_steered_are_left_alone(make, moves: str) -> None:  # type: ignore[no-untyped-def]
    loop = Loop(make)
    steering = loop.attach(policy=make_policy(moves=moves), rate_trust=0.0)
    assert steering.plan["learning_rate"] == pytest.approx(0.1)


def test_an_optimizer_that_can_do_all_begins_there_too() -> None:
    loop = Loop(lambda p: PlanOptimizer(p, 0.1))
    size = sum(p.numel() for p in loop.model.parameters())
    assert loop.attach(rate_trust=0.0).plan["learning_rate"] == pytest.approx(find_usual_rate(size))


@pytest.mark.parametrize("trust", [-0.1, 1.1, math.nan])
def test_a_trust_that_is_none_is_refused(trust: float) -> None:
    with pytest.raises(LoopwrightError, match="rate_trust"):
        Loop().attach(rate_trust=trust)
