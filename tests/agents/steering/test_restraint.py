"""What a policy's choice is held to: limits, the cooldown; and what is given back."""

import math
from typing import Any

import pytest
import torch
from test_steering import Loop
from torch import nn

from loopwright.agents.controllers.policy import Policy, build_network
from loopwright.agents.steering.attach import attach
from loopwright.agents.steering.groups import LEARNING_RATE_ALONE, Groups
from loopwright.agents.steering.optimizer import PlanOptimizer
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import OBSERVATION_NAMES
from loopwright.envs.loop.plan import LoopPlan

pytestmark = pytest.mark.filterwarnings("ignore:.*left as they are")
SINCE_START = OBSERVATION_NAMES.index("rate_since_start")


def make_stubborn(knobs: str, *steps: float) -> Policy:
    """One that takes the same step of each knob at every decision, whatever it sees."""
    moved = KnobSet(knobs)
    network = build_network([len(OBSERVATION_NAMES), moved.outputs], "tanh")
    with torch.no_grad():
        network[0].weight.zero_()
        wanted = [float(own == step) for k, step in zip(moved.knobs, steps, strict=True) for own in k.steps]
        network[0].bias.copy_(100 * torch.tensor(wanted))  # a step is the mean over the logits' chances
    return Policy(network, moved, LoopPlan(), training={"settings": {"ticks_per_decision": 16}})


FURTHER = KnobSet("lr").knobs[0].steps[4]  # the least that raises the learning rate


def follow(loop: Loop, end: int = 320, begin: int = 0) -> list[tuple[float, float]]:
    """After each decision the learning rate, and how far it is from the start, in what the policy sees."""
    found = []
    for start in range(begin, end, 16):
        loop.run(start, start + 16)
        assert loop.steering is not None
        found.append((loop.optimizer.param_groups[0]["lr"], float(loop.steering._seen[0, SINCE_START])))
    return found


def test_a_limit_holds_for_what_the_policy_chooses_and_the_cooldown_goes_on_from_there() -> None:
    loop = Loop()
    limits = {"learning_rate": (1e-5, 2e-2)}
    climbing = make_stubborn("lr", FURTHER)
    loop.steering = attach(loop.optimizer, climbing, 320, prices=None, limits=limits, cooldown=0.5, guard=0)
    rates, seen = zip(*follow(loop), strict=True)
    assert max(rates) == pytest.approx(2e-2)
    assert max(seen) == pytest.approx(math.log(2), abs=1e-5)
    cooled = [2e-2 * max(0.01, (1 - (number + 0.5) / 20) / 0.5) for number in range(10, 21)]
    assert rates[9:] == pytest.approx(cooled)


def test_a_lower_limit_is_no_floor_to_the_cooldown_nor_raises_what_the_policy_sees() -> None:
    loop = Loop()
    limits = {"learning_rate": (5e-3, 1e-1)}
    loop.steering = attach(loop.optimizer, make_stubborn("lr", 0.0), 320, prices=None, limits=limits)
    rates, seen = zip(*follow(loop), strict=True)
    assert rates[-1] == pytest.approx(1e-4)
    assert seen == pytest.approx([0.0] * len(seen), abs=1e-5)


def test_advice_is_what_would_be_done() -> None:
    """The optimizer's rate does not cool down, so there is nothing to undo."""
    advised, steered = Loop(), Loop()
    for loop in (advised, steered):
        loop.steering = attach(
            loop.optimizer, make_stubborn("lr", 0.0), 320, prices=None, guard=0, advise=loop is advised
        )
    plans = []
    for start in range(0, 320, 16):
        own = []
        for loop in (advised, steered):
            loop.run(start, start + 16)
            assert loop.steering is not None
            own.append(loop.steering.plan["learning_rate"])
            assert float(loop.steering._seen[0, SINCE_START]) == pytest.approx(0, abs=1e-5)
        plans.append(own)
    assert [first for first, _ in plans] == pytest.approx([second for _, second in plans])
    assert plans[-1][0] == pytest.approx(1e-4)
    assert advised.optimizer.param_groups[0]["lr"] == 1e-2


@pytest.mark.parametrize("options", [{"cooldown": 0.0}, {"steps": None}])
def test_what_is_resumed_without_a_cooldown_goes_up_again(options: dict[str, Any]) -> None:
    loop, policy = Loop(), make_stubborn("lr", 0.0)
    loop.steering = attach(loop.optimizer, policy, 320, prices=None)
    loop.run(0, 288)
    assert loop.optimizer.param_groups[0]["lr"] < 2e-3
    state = loop.steering.state_dict()
    loop.steering.detach()
    loop.steering = attach(loop.optimizer, policy, prices=None, **{"steps": 640, **options})
    loop.steering.load_state_dict(state)
    loop.run(288, 320)
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2)


def test_limits_that_are_given_leave_the_others_as_they_are_by_default() -> None:
    climbing = make_stubborn("weight_decay+average", 1.0, 1.0)
    for limits, decay, average in (
        (None, 0.1, 128.0),
        ({"average": (0, 0)}, 0.1, 0.0),
        ({"weight_decay": (0.0, math.inf)}, 1.0, 128.0),
        ({}, 1.0, 128.0),
    ):
        loop = Loop()
        steering = attach(loop.optimizer, climbing, 320, prices=None, limits=limits)
        loop.steering = steering
        loop.run(0, 32)
        assert (steering.plan["weight_decay"], steering.plan["average"]) == pytest.approx((decay, average))


@pytest.mark.parametrize("when", ["between iterations", "after the update"])
def test_a_group_that_comes_later_keeps_its_decay(when: str) -> None:
    loop = Loop()
    steering = loop.attach(policy=make_stubborn("lr+weight_decay", 0.0, 1.0))
    loop.run(0, 31)
    later = {"params": [nn.Parameter(torch.zeros(2))], "lr": 1e-3, "weight_decay": 0.5}
    if when == "between iterations":
        loop.optimizer.add_param_group(later)
    else:
        whole, take = steering.step, loop.optimizer.add_param_group
        loop.steering = type("Late", (), {"step": lambda _, loss: (take(later), whole(loss))})()  # type: ignore[assignment]
    loop.run(31, 32)
    loop.steering = steering
    loop.run(32, 64)
    assert [group["weight_decay"] for group in loop.optimizer.param_groups] == pytest.approx([0.1, 0.5])
    assert [group["lr"] for group in loop.optimizer.param_groups] == pytest.approx([1e-2, 1e-3])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"learning_rate": 1e-3}, r"limits of learning_rate must be two numbers, \(low, high\); got 0.001"),
        ({"learning_rate": ("a", "b")}, r"must be two numbers, \(low, high\); got \('a', 'b'\)"),
        ({"learning_rate": (1e-3, 1e-2, 1e-1)}, "must be two numbers"),
        ({"momentum": (1.0, 2.0)}, r"momentum must be in \[0, 1\), below 1 in float32 too; got 1.0"),
        ({"batch": (1, 2.5)}, "batch must be a whole number >= 1; got 2.5"),
        ({"learning_rate": (math.nan, 1.0)}, r"must be \(low, high\)"),
        ([("learning_rate", (0, 1))], "limits must be a mapping"),
    ],
)
def test_limits_that_cannot_be_are_refused(limits: Any, message: str) -> None:
    with pytest.raises(LoopwrightError, match=message):
        attach(Loop().optimizer, make_stubborn("lr", 0.0), limits=limits)
    attach(Loop().optimizer, make_stubborn("lr", 0.0), limits={"clip": (0, math.inf), "optimizer": (1, 1)})


def test_a_policy_is_a_policy_or_where_one_is() -> None:
    with pytest.raises(LoopwrightError, match="policy must be a policy, a path or name of one, or None, got 3"):
        attach(Loop().optimizer, 3)  # type: ignore[arg-type]
    with pytest.raises(LoopwrightError, match=r"cannot read \.: it is no file"):
        attach(Loop().optimizer, "")


def test_an_optimizer_of_a_known_name_without_its_settings_is_known_by_its_rate_alone() -> None:
    class Muon(torch.optim.SGD):
        """As some are: matrices by one rule, the rest by another, in one optimizer."""

    made = Muon([nn.Parameter(torch.zeros(4, 4))], lr=0.1, momentum=0.9)
    assert Groups(made).means.momentum == "average"
    made.add_param_group({"params": [nn.Parameter(torch.zeros(9))], "lr": 1e-3, "betas": (0.9, 0.99)})
    del made.param_groups[1]["momentum"]
    assert Groups(made).means is LEARNING_RATE_ALONE


def test_a_learning_rate_in_a_tensor_is_given_back() -> None:
    rate = torch.tensor(1e-2)
    loop = Loop(lambda parameters: torch.optim.AdamW(parameters, lr=rate))
    loop.attach(policy=make_stubborn("lr", FURTHER), guard=1)
    with pytest.warns(UserWarning, match="steering has stopped"):
        loop.run(0, 48, lambda number, loss: loss * (math.nan if number > 15 else 1))
    assert loop.optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(1e-2)


def test_what_a_plan_optimizer_counts_is_brought_back_with_its_state() -> None:
    loop = Loop(lambda parameters: PlanOptimizer(parameters, 1e-2, second_momentum=0.999))
    steering = loop.attach(policy=make_stubborn("lr", 0.0), guard=1)
    (group,), (weight, *_) = loop.optimizer.param_groups, loop.model.parameters()
    counts = {}
    for start in range(0, 320, 16):
        loop.run(start, start + 16)
        counts[float(loop.optimizer.state[weight]["momentum"].norm())] = group["product2"]
    assert list(counts.values()) == pytest.approx([0.999**count for count in range(16, 336, 16)])
    with pytest.warns(UserWarning, match="steering has stopped"):
        loop.run(320, 352, lambda number, loss: loss * math.nan)
    assert steering.stopped is not None
    assert group["product2"] == counts[float(loop.optimizer.state[weight]["momentum"].norm())]


@pytest.mark.parametrize("batch", [1, 4, 16, 64])
def test_noise_is_no_false_start(batch: int) -> None:
    """Of a regression at a rate that is far too small to do anything: the first loss is one batch's, and may be low."""
    stopped = taken_back = 0
    for seed in range(100):
        random = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        model = nn.Linear(8, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        steering = attach(optimizer, make_stubborn("lr", 0.0), prices=None)
        for _ in range(32):
            inputs, noise = (torch.randn(batch, n, generator=random) for n in (8, 1))
            loss = (model(inputs) - noise).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            steering.step(loss)
        assert steering._guard is not None
        taken_back += steering._guard.left < 1
        stopped += steering.stopped is not None
    assert stopped == 0
    assert taken_back <= 5


def test_a_first_loss_that_is_none_does_not_hide_a_false_start() -> None:
    loop = Loop(lambda parameters: torch.optim.AdamW(parameters, lr=3.0))
    before = loop.weights
    loop.attach(policy=make_stubborn("lr", 0.0), guard=5, warmup=0)
    loop.run(0, 16, lambda number, loss: loss * (math.nan if number == 0 else 1))
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(1.5)
    loop.run(16, 32)
    assert torch.equal(loop.weights, before)
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(0.15)
