"""How a steered loop's learning rate climbs at its beginning."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from test_restraint import FURTHER, make_stubborn
from test_steering import Loop

from loopwright import attach
from loopwright.agents.steering.rate_scale import find_usual_rate
from loopwright.agents.steering.warmup import WarmUp
from loopwright.envs.loop.arithmetic import One
from loopwright.envs.loop.errors import LoopwrightError

SIZE = 738  # parameters of the loop
RATE = 10 * find_usual_rate(SIZE)  # a hundred times where the climb begins


class AdamW(torch.optim.AdamW):  # by which name it is known
    """Keeps the learning rates that its updates were made with."""

    def __init__(self, parameters: Any, lr: Any = RATE) -> None:
        super().__init__(parameters, lr=lr)
        self.used: list[float] = []

    def step(self, closure: Any = None) -> Any:
        self.used.append(float(self.param_groups[0]["lr"]))
        return super().step(closure)


def stay(number: int, loss: torch.Tensor) -> torch.Tensor:
    """A loss that tells nothing."""
    return loss * 0 + 1


def turn(number: int, loss: torch.Tensor) -> torch.Tensor:
    """One that falls for ten iterations, and then rises."""
    return loss * 0 + 1 + 0.1 * abs(number - 10)


def start(lr: Any = RATE, raises: float = 0.0, **options: Any) -> Loop:
    loop = Loop(lambda parameters: AdamW(parameters, lr))
    assert loop.weights.numel() == SIZE
    loop.attach(policy=make_stubborn("lr", raises), guard=0, **{"steps": None, **options})
    return loop


def follow(iterations: int, spoil: Callable[[int, torch.Tensor], torch.Tensor] = stay, **options: Any) -> list[float]:
    """The rates that updates were made with, under a policy that leaves the rate as it is."""
    loop = start(**options)
    loop.run(0, iterations, spoil)
    used: list[float] = loop.optimizer.used  # type: ignore[attr-defined]
    return used


def test_it_climbs_by_equal_factors_and_only_within_updates() -> None:
    used = follow(40)
    assert [b / a for a, b in pairwise(used)][:31] == pytest.approx([10 ** (1 / 16)] * 31)
    assert used[0] == pytest.approx(RATE / 100 * 10 ** (1 / 16))
    assert used[31:] == pytest.approx([RATE] * 9)
    loop = start()
    for iteration in range(40):
        loop.run(iteration, iteration + 1, stay)
        assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(RATE)


@pytest.mark.parametrize(
    ("options", "lasts"),
    [
        ({}, 32),
        ({"lr": RATE / 10}, 16),
        ({"lr": RATE / 100}, 0),
        ({"lr": RATE / 1000}, 0),
        ({"steps": 160}, 20),
        ({"steps": 1000}, 32),
        ({"warmup": 5}, 5),
        ({"warmup": 5, "lr": RATE / 1000}, 5),
        ({"warmup": 0}, 0),
    ],
)
def test_how_long_it_lasts(options: dict[str, Any], lasts: int) -> None:
    used = follow(40, cooldown=0.0, **options)
    assert sum(rate < 0.999 * options.get("lr", RATE) for rate in used) == max(lasts - 1, 0)


def test_where_the_loss_turns_it_ends_and_the_rate_stays_where_the_loss_was_least() -> None:
    used = follow(64, turn)
    least = used[9:13]  # smoothed, it is least a little later
    end = used.index(max(used))
    assert 10 <= end < 32
    assert min(least) <= used[-1] <= max(least)
    assert used[end + 1 :] == pytest.approx([used[-1]] * (63 - end))
    loop = start()
    loop.run(0, 64, turn)
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(used[-1])
    assert loop.steering is not None
    assert loop.steering.plan["learning_rate"] == pytest.approx(used[-1])


@pytest.mark.parametrize(("leap", "least", "most"), [(1, 0.0, 0.05), (5, 0.7, 1.0)])
def test_noise_of_single_samples_does_not_end_it_and_a_leap_does(leap: int, least: float, most: float) -> None:
    rng, early, ended = np.random.default_rng(0), 0, 0
    for _ in range(200):
        climb = WarmUp(32, 100.0)
        for number, loss in enumerate(rng.exponential(1.0, 32) * np.where(np.arange(32) < 20, 1, leap)):
            climb.watch(float(loss))
            climb.settle()
            if climb.iterations == 0:
                early, ended = early + (number < 20), ended + 1
                break
    assert early <= 0.05 * 200
    assert least * 200 <= ended <= most * 200


def test_a_loss_that_is_no_number_ends_it() -> None:
    used = follow(16, lambda number, loss: loss * (0 if number < 8 else float("nan")) + 2 - 0.1 * number)
    assert used[-1] == pytest.approx(used[7])
    first = follow(16, lambda number, loss: loss * (0 if number else float("nan")) + 1)
    assert first == pytest.approx(follow(16))


def test_meanwhile_a_policy_does_not_raise_the_rate() -> None:
    loop = start(raises=FURTHER)
    rates = []
    for decision in range(5):
        loop.run(16 * decision, 16 * decision + 16, stay)
        rates.append(loop.optimizer.param_groups[0]["lr"])
    decode = loop.steering.policy.knobs.knobs[0].decode  # type: ignore[union-attr]
    assert rates[0] == rates[1]
    assert rates[2] / rates[1] == pytest.approx(decode(One, FURTHER), rel=1e-4)
    lowering = start(raises=-FURTHER)
    lowering.run(0, 16, stay)
    assert lowering.optimizer.param_groups[0]["lr"] < RATE / decode(One, FURTHER)


@pytest.mark.filterwarnings("ignore:SGD has nothing for")
def test_who_has_none() -> None:
    under_way = Loop(AdamW)
    under_way.run(0, 3)
    under_way.attach(policy=make_stubborn("lr", 0.0))
    under_way.run(3, 8)
    assert under_way.optimizer.used == pytest.approx([RATE] * 8)  # type: ignore[attr-defined]
    assert follow(8, advise=True) == [RATE] * 8
    other = Loop(lambda parameters: torch.optim.SGD(parameters, lr=100.0))
    assert other.attach(policy=make_stubborn("lr", 0.0))._restraint.warmup.iterations == 0


def test_a_rate_that_is_a_tensor_stays_that_tensor() -> None:
    rate = torch.tensor(RATE)
    loop = start(lr=rate, warmup=4)
    loop.run(0, 8, stay)
    used = loop.optimizer.used  # type: ignore[attr-defined]
    assert used == pytest.approx([RATE * 100 ** (n / 4 - 1) for n in range(1, 5)] + [RATE] * 4)
    assert loop.optimizer.param_groups[0]["lr"] is rate


@pytest.mark.parametrize("spoil", [stay, turn])
@pytest.mark.parametrize("killed", [1, 9, 15, 20])
def test_a_resumed_job_goes_on_climbing(spoil: Callable[[int, torch.Tensor], torch.Tensor], killed: int) -> None:
    whole, first, second = start(), start(), Loop(AdamW)
    whole.run(0, 64, spoil)
    first.run(0, killed, spoil)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.attach(policy=make_stubborn("lr", 0.0), guard=0, steps=None)
    assert first.steering is not None
    assert second.steering is not None
    second.steering.load_state_dict(first.steering.state_dict())
    second.run(killed, 64, spoil)
    assert second.optimizer.used == whole.optimizer.used[killed:]  # type: ignore[attr-defined]
    assert torch.equal(second.weights, whole.weights)


def test_it_cannot_last_less_than_nothing() -> None:
    with pytest.raises(LoopwrightError, match="warmup must be 0 or more, got -1"):
        attach(Loop().optimizer, warmup=-1)
