"""How a steered loop's learning rate climbs at its beginning."""

import itertools
from typing import Any

import pytest
import torch
from test_restraint import make_stubborn
from test_steering import Loop

from loopwright import attach
from loopwright.agents.steering.warmup import SPAN
from loopwright.envs.loop.errors import LoopwrightError

RATE = 0.01


class Watched(torch.optim.AdamW):
    """Keeps the learning rates that its updates were made with."""

    def __init__(self, parameters: Any, **settings: Any) -> None:
        super().__init__(parameters, **{"lr": RATE, **settings})
        self.used: list[float] = []

    def step(self, closure: Any = None) -> Any:
        self.used.append(float(self.param_groups[0]["lr"]))
        return super().step(closure)


def follow(iterations: int, lr: Any = RATE, **options: Any) -> tuple[Loop, list[float]]:
    """The loop, and the rates its updates were made with, under a policy that leaves it as it is."""
    loop = Loop(lambda parameters: Watched(parameters, lr=lr))
    loop.attach(policy=make_stubborn("lr", 0.0), guard=0, **{"steps": None, **options})
    loop.run(0, iterations)
    return loop, loop.optimizer.used  # type: ignore[attr-defined]


def test_it_climbs_by_equal_factors_and_only_within_updates() -> None:
    _loop, used = follow(40)
    ratios = [b / a for a, b in itertools.pairwise(used)]
    assert ratios[:31] == pytest.approx([SPAN ** (1 / 32)] * 31)
    assert used[31:] == pytest.approx([RATE] * 9)
    assert used[0] == pytest.approx(RATE / SPAN, rel=0.2)
    for iterations in (1, 7, 33):
        assert follow(iterations)[0].optimizer.param_groups[0]["lr"] == pytest.approx(RATE)


@pytest.mark.parametrize(
    ("options", "lasts"), [({"steps": 160}, 20), ({"steps": 1000}, 32), ({"warmup": 5}, 5), ({"warmup": 0}, 0)]
)
def test_how_long_it_lasts(options: dict[str, Any], lasts: int) -> None:
    _, used = follow(40, cooldown=0.0, **options)
    assert sum(rate < 0.999 * RATE for rate in used) == max(lasts - 1, 0)


def test_an_optimizer_under_way_has_it_behind() -> None:
    loop = Loop(Watched)
    loop.run(0, 3)
    loop.attach(policy=make_stubborn("lr", 0.0))
    loop.run(3, 8)
    assert loop.optimizer.used == pytest.approx([RATE] * 8)  # type: ignore[attr-defined]


def test_a_rate_that_is_a_tensor_stays_that_tensor() -> None:
    rate = torch.tensor(RATE)
    loop, used = follow(8, lr=rate, warmup=4)
    assert used == pytest.approx([RATE * SPAN ** (n / 4 - 1) for n in range(1, 5)] + [RATE] * 4)
    assert loop.optimizer.param_groups[0]["lr"] is rate


def test_whoever_only_asks_is_not_slowed() -> None:
    _, used = follow(8, advise=True)
    assert used == [RATE] * 8


def test_a_resumed_job_goes_on_climbing() -> None:
    whole, used = follow(40)
    first, _ = follow(9)
    second = Loop(Watched)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.attach(policy=make_stubborn("lr", 0.0), guard=0, steps=None)
    second.steering.load_state_dict(first.steering.state_dict())  # type: ignore[union-attr]
    second.run(9, 40)
    assert second.optimizer.used == used[9:]  # type: ignore[attr-defined]
    assert torch.equal(second.weights, whole.weights)


def test_it_cannot_last_less_than_nothing() -> None:
    with pytest.raises(LoopwrightError, match="warmup must be 0 or more, got -1"):
        attach(Loop().optimizer, warmup=-1)
