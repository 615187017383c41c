"""How learning rates are scaled for networks that are larger than any a policy was trained on."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_steering import make_policy
from torch import nn

from loopwright.agents.steering.attach import attach
from loopwright.agents.steering.optimizer import PlanOptimizer
from loopwright.agents.steering.rate_scale import (
    EXPONENT,
    TRAINED_ON,
    USUAL_RATE,
    USUAL_SIZE,
    find_rate_scale,
    find_usual_rate,
)
from loopwright.inner_tasks.models import ModelSpec
from loopwright.inner_tasks.registry import get_shape
from loopwright.inner_tasks.suites import get_suite
from loopwright.inner_tasks.targets import read_targets

pytestmark = pytest.mark.filterwarnings("ignore:.*left as they are")


def test_rates_fall_as_those_of_the_best_of_the_training_tasks() -> None:
    """A line through the logarithms of size and rate of the best static configurations, where these are AdamW's."""
    targets, sizes, points = read_targets().targets, dict[ModelSpec, int](), []
    for name in get_suite("train").tasks():
        winner, model = targets[name].winner, get_shape(name)[0]
        if winner is None or winner["optimizer"] != "adamw":
            continue
        if model not in sizes:
            sizes[model] = sum(p.numel() for p in model.build().parameters())
        points.append((math.log10(sizes[model]), math.log10(winner["learning_rate"])))
    slope, level = np.polyfit(*np.array(points).T, 1)
    assert slope == pytest.approx(EXPONENT, abs=0.01)
    assert 10 ** (slope * math.log10(USUAL_SIZE) + level) == pytest.approx(USUAL_RATE, rel=0.05)
    assert find_usual_rate(USUAL_SIZE) == USUAL_RATE
    assert find_usual_rate(100 * USUAL_SIZE) == pytest.approx(USUAL_RATE * 100**EXPONENT)
    assert max(sizes.values()) == pytest.approx(TRAINED_ON, rel=0.05)


def test_rates_of_large_networks_are_smaller() -> None:
    assert find_rate_scale(10) == find_rate_scale(TRAINED_ON) == 1
    assert find_rate_scale(100 * TRAINED_ON) == pytest.approx(100**EXPONENT)


def test_a_large_network_is_seen_by_a_policy_as_one_that_it_knows() -> None:
    """What it sees of the rate, and what it sets, differ by what large networks' rates are smaller by."""
    for width, scale in ((8, 1.0), (4000, find_rate_scale(4000 * 4 + 4000 + 4000 * 200 + 200))):
        model = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 200))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        steering = attach(optimizer, make_policy(moves="lr"), 320, prices=None)
        assert steering.plan["learning_rate"] == pytest.approx(1e-3)
        assert steering._restraint.undo(steering.plan)["learning_rate"] == pytest.approx(1e-3 / scale)
        held = steering._restraint.hold({"learning_rate": 1e-2}, 0, 16, torch.device("cpu"))
        assert held["learning_rate"] == pytest.approx(1e-2 * scale)


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
    ("make", "moves", "scaled"),
    [
        (lambda p: torch.optim.AdamW(p), "lr", True),
        (lambda p: PlanOptimizer(p, 0.1), "lr", True),
        (lambda p: torch.optim.SGD(p, lr=0.1), "lr", False),
        (lambda p: torch.optim.Adagrad(p, lr=0.1), "lr", False),
        (lambda p: PlanOptimizer(p, 0.1, rule="sgd"), "lr", False),
        (lambda p: torch.optim.AdamW(p), "average", False),
    ],
)
def test_rates_of_another_kind_and_rates_that_are_not_steered_are_left_alone(
    make: Callable[[Any], torch.optim.Optimizer], moves: str, scaled: bool
) -> None:
    optimizer = make(nn.Linear(200, 200).parameters())
    steering = attach(optimizer, make_policy(moves=moves), prices=None)
    assert steering._restraint.level == pytest.approx(find_rate_scale(200 * 201) if scaled else 1.0)


def test_what_is_added_later_counts() -> None:
    first, second = nn.Linear(20, 20), nn.Linear(200, 200)
    optimizer = torch.optim.AdamW(first.parameters())
    steering = attach(optimizer, make_policy(moves="lr"), prices=None)
    assert steering._restraint.level == 1
    optimizer.add_param_group({"params": second.parameters()})
    loss = second(torch.ones(2, 200)).mean() + first(torch.ones(2, 20)).mean()
    loss.backward()
    optimizer.step()
    steering.step(loss)
    assert steering._restraint.level == pytest.approx(find_rate_scale(20 * 21 + 200 * 201))
