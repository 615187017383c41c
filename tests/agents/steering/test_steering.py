"""A policy in a loop that knows nothing of it: what it sets, what it leaves alone, and what it survives."""

import io
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from loopwright.agents.controllers.bundle import load_policy
from loopwright.agents.controllers.policy import Policy, build_network
from loopwright.agents.steering.attach import attach
from loopwright.agents.steering.groups import Groups
from loopwright.agents.steering.optimizer import PlanOptimizer
from loopwright.agents.steering.optimizer import optimizer as make_optimizer
from loopwright.agents.steering.pace import count_decisions
from loopwright.agents.steering.steering import Steering
from loopwright.envs.engine.randomness import draw_candidates, make_key
from loopwright.envs.engine.reference import ReferenceLoop
from loopwright.envs.engine.weights import draw_weights
from loopwright.envs.episode.batch import EpisodeBatch
from loopwright.envs.episode.ledger_fields import read_checked_ledger
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.episode.start import Start
from loopwright.envs.loop.context import INFORMATION
from loopwright.envs.loop.controller import View
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.ledger import read_ledger
from loopwright.envs.loop.observation import OBSERVATION_NAMES
from loopwright.envs.loop.plan import LoopPlan, name_column
from loopwright.inner_tasks import Task

pytestmark = pytest.mark.filterwarnings("ignore:.*left as they are")
Make = Callable[[Any], Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "SGD without momentum": lambda p: torch.optim.SGD(p, lr=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-2),
    "PlanOptimizer": lambda p: PlanOptimizer(p, 1e-2),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
}


def make_policy(seed: int = 1, recurrent: bool = False, moves: str = "core") -> Policy:
    """One that was never trained, and moves every knob."""
    knobs, width = KnobSet(moves), 16 if recurrent else len(OBSERVATION_NAMES)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network([width, 32, sum(knobs.choices)], "tanh")
        lstm = nn.LSTM(len(OBSERVATION_NAMES), width) if recurrent else None
    return Policy(network, knobs, LoopPlan(), training={"settings": {"ticks_per_decision": 16}}, lstm=lstm)


def read_batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(32, 20, generator=torch.Generator().manual_seed(number))
    return inputs, (inputs[:, :3].sum(1) > 0).long()


class Loop:
    """Twenty lines that a user would write."""

    def __init__(self, make: Make = OPTIMIZERS["AdamW"], seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 2))
        self.optimizer = make(self.model.parameters())
        self.steering: Steering | None = None

    def attach(self, **options: Any) -> Steering:
        options = {"policy": make_policy(), "steps": 1000, "prices": None} | options
        self.steering = attach(self.optimizer, **options)
        return self.steering

    def run(self, first: int, last: int, spoil: Callable[[int, torch.Tensor], torch.Tensor] | None = None) -> float:
        for number in range(first, last):
            inputs, labels = read_batch(number)
            loss = nn.functional.cross_entropy(self.model(inputs), labels)
            if spoil is not None:
                loss = spoil(number, loss)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.steering is not None:
                self.steering.step(loss)
        return loss.item()

    @property
    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_an_optimizer_has_is_steered_and_the_rest_left_alone(name: str, tmp_path: Path) -> None:
    loop = Loop(OPTIMIZERS[name])
    steering = loop.attach(ledger=tmp_path / "run.jsonl")
    before = {"lr": 0.0} | dict(OPTIMIZERS[name]([nn.Parameter(torch.zeros(2))]).param_groups[0])
    loss = loop.run(0, 160)
    assert steering.decisions == 10
    assert math.isfinite(loss)
    group = loop.optimizer.param_groups[0]
    assert group["lr"] != before["lr"]
    if "second_momentum" not in steering.groups.settable and "betas" in group:
        assert group["betas"][1] == before["betas"][1]
    found = Groups(loop.optimizer).read(steering.plan)
    for field in steering.groups.settable - {"clip", "average"}:
        assert found[field] == pytest.approx(steering.plan[field], rel=1e-6)
    content = read_checked_ledger(tmp_path / "run.jsonl")
    assert [entry["decision"] for entry in content.entries] == list(range(11))  # the first before any update
    assert content.entries[-1]["plan"]["learning_rate"] == pytest.approx(steering.plan["learning_rate"])
    assert content.header["window"] == 4


def test_advice_changes_nothing_to_the_bit() -> None:
    plain, advised = Loop(), Loop()
    steering = advised.attach(advise=True)
    for loop in (plain, advised):
        loop.run(0, 200)
    assert torch.equal(plain.weights, advised.weights)
    assert steering.decisions == 12
    assert steering.plan["learning_rate"] != 1e-2


@pytest.mark.parametrize("name", ["AdamW", "SGD", "PlanOptimizer"])
@pytest.mark.parametrize("cut", [3, 32, 45, 111])
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(cut: int, name: str, tmp_path: Path) -> None:
    """And so does its ledger, though the first went on for a while after its state was saved."""
    make, ledgers = OPTIMIZERS[name], (tmp_path / "whole.jsonl", tmp_path / "cut.jsonl")
    whole, first, second = Loop(make), Loop(make), Loop(make, seed=5)
    whole.attach(ledger=ledgers[0], cooldown=1.0)  # all the way down
    whole.run(0, 150)
    first.attach(ledger=ledgers[1], cooldown=1.0)
    first.run(0, cut)
    assert first.steering is not None
    stored = io.BytesIO()
    torch.save([first.model.state_dict(), first.optimizer.state_dict(), first.steering.state_dict()], stored)
    stored.seek(0)
    first.run(cut, cut + 30)
    model, optimizer, steering = torch.load(stored, weights_only=True)
    second.model.load_state_dict(model)
    second.optimizer.load_state_dict(optimizer)
    second.attach(ledger=ledgers[1], cooldown=1.0).load_state_dict(steering)
    second.run(cut, 150)
    assert torch.equal(whole.weights, second.weights)
    expected, found = (read_ledger(path).entries for path in ledgers)
    assert found == expected
    assert len(found) == 10


def test_a_recurrent_policy_remembers_across_an_interruption() -> None:
    policy = make_policy(recurrent=True)
    whole, first, second = Loop(), Loop(), Loop(seed=5)
    whole.attach(policy=policy)
    whole.run(0, 150)
    state = first.attach(policy=policy)
    first.run(0, 45)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    resumed = second.attach(policy=policy)
    resumed.load_state_dict(state.state_dict())
    second.run(45, 150)
    assert torch.equal(whole.weights, second.weights)
    forgetful = Loop()
    steering = forgetful.attach(policy=policy)
    forgetful.run(0, 45)
    assert steering._memory is not None
    steering._memory[:] = 0
    forgetful.run(45, 150)
    assert not torch.equal(whole.weights, forgetful.weights)


def test_going_back_in_a_ledger_leaves_the_runs_before(tmp_path: Path) -> None:
    for _ in range(2):
        loop = Loop()
        steering = loop.attach(ledger=tmp_path / "run.jsonl")
        state = steering.state_dict()
        loop.run(0, 40)
        steering.detach()
    entries = read_ledger(tmp_path / "run.jsonl").entries
    assert [entry["decision"] for entry in entries] == [0, 1, 2, 0, 1, 2]
    Loop().attach(ledger=tmp_path / "run.jsonl").load_state_dict(state)
    assert read_ledger(tmp_path / "run.jsonl").entries == entries[:3]


def test_a_steered_loop_and_a_lane_come_to_the_same_decisions(small_task: Task) -> None:
    """On the same samples from the same weights; both know nothing beforehand."""
    knobs, seed = KnobSet("lr+clip+weight_decay"), 7
    torch.manual_seed(1)
    network = build_network([len(OBSERVATION_NAMES), 32, sum(knobs.choices)], "tanh")
    policy = Policy(network, knobs, LoopPlan(), training={"settings": {"ticks_per_decision": 16}})
    batch = EpisodeBatch(small_task, 1, EpisodeSettings(guard=3, budget_factor=50.0))
    batch.begin([0], [Start(small_task, seed, LoopPlan(learning_rate=3e-3, batch=1), withheld=INFORMATION)])
    expected = []
    for decision in range(20):
        view = View(batch.observation, batch.plans, torch.zeros(1), torch.tensor([float(decision)]), batch.step_ratio)
        plans = policy.decide(view)
        expected.append(name_column(plans, 0))
        batch.decide(plans)
    model = small_task.model.build()
    nn.utils.vector_to_parameters(draw_weights(small_task, seed), model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    steering = attach(optimizer, policy, prices=None, warmup=0)
    found: list[dict[str, float]] = []
    key = make_key(torch.tensor([seed]))
    for tick in range(19 * 16):
        index = draw_candidates(key, torch.tensor([tick]), 16, len(small_task.train))[0][0]
        loss = nn.functional.cross_entropy(model(small_task.train.inputs[index]), small_task.train.labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steering.step(loss)
        if tick == 0 or steering.decisions == len(found):
            found.append(dict(steering.plan))
    assert len(found) == 20
    for ours, theirs in zip(found, expected, strict=True):
        for field in ("learning_rate", "clip", "weight_decay"):
            assert ours[field] == pytest.approx(theirs[field], rel=1e-3)
    assert len({plan["learning_rate"] for plan in found}) > 10


def test_groups_keep_their_ratios_and_stay_within_limits() -> None:
    def make(_: Any) -> Optimizer:
        return torch.optim.AdamW(
            [{"params": loop.model[0].parameters(), "lr": 1e-2}, {"params": loop.model[2].parameters(), "lr": 1e-3}],
            weight_decay=0.0,
        )

    loop = Loop()
    loop.optimizer = make(None)
    steering = loop.attach(limits={"learning_rate": (5e-3, 2e-2)})
    for start in range(0, 320, 16):
        loop.run(start, start + 16)
        first, second = (group["lr"] for group in loop.optimizer.param_groups)
        assert first / second == pytest.approx(10)
        assert 5e-3 <= first <= 2e-2
    assert steering.decisions == 20


def test_sgd_counts_its_learning_rate_along_the_sum() -> None:
    groups = Groups(torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1, momentum=0.9))
    plan = groups.read({"learning_rate": 0.0, "momentum": 0.0, "weight_decay": 0.0})
    assert plan["learning_rate"] == pytest.approx(1.0)
    groups.write(plan | {"momentum": 0.5})
    (group,) = groups.optimizer.param_groups
    assert (group["lr"], group["momentum"]) == (pytest.approx(0.5), 0.5)
    damped = Groups(torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1, momentum=0.9, dampening=0.9))
    assert damped.read(plan)["learning_rate"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda number, loss: loss * math.nan if number == 40 else loss,
        lambda number, loss: loss * 1e6 if number == 40 else loss,
        lambda number, loss: loss * math.inf if number in (40, 41) else loss,
        lambda number, loss: loss * math.nan if number == 2 else loss,
    ],
    ids=["NaN batch", "spike", "infinite loss", "NaN at the beginning"],
)
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_a_batch_that_ruins_the_run_is_recovered_from(name: str, spoil: Any) -> None:
    loop = Loop(OPTIMIZERS[name])
    steering = loop.attach(limits={"learning_rate": (1e-3, 1.0)})
    loop.run(0, 160, spoil)
    assert torch.isfinite(loop.weights).all()
    assert steering.stopped is None
    assert loop.run(160, 320) < 1


def test_the_rate_cools_down_to_the_end() -> None:
    """In a line, by the middle of each decision, whatever the policy makes of it."""
    loop, rates = Loop(), []
    loop.steering = attach(loop.optimizer, make_policy(moves="average"), 160, prices=None, cooldown=0.5)
    for start in range(0, 160, 16):
        rates.append(loop.optimizer.param_groups[0]["lr"])
        loop.run(start, start + 16)
    shares = [rate / 1e-2 for rate in [*rates[1:], loop.optimizer.param_groups[0]["lr"]]]
    assert shares == pytest.approx([1, 1, 1, 1, 0.9, 0.7, 0.5, 0.3, 0.1, 0.01])


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        *(("AdamW", "adamw"), ("Adam", "adamw"), ("NAdam", "adamw"), ("PlanOptimizer", "all")),
        *((name, "lr-clip-average") for name in ("SGD", "RMSprop", "Adagrad")),
    ],
)
def test_an_optimizer_gets_the_policy_that_is_for_it(name: str, policy: str) -> None:
    loop = Loop(OPTIMIZERS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of what is held anyway nobody is told that it is left as it is
        assert attach(loop.optimizer, prices=None).policy.fingerprint == load_policy(policy).fingerprint
        loop.run(0, 1)


def test_unless_told_otherwise_momenta_stay_in_their_range_and_the_decay_as_it_is() -> None:
    held, free = Loop(), Loop()
    held.attach(warmup=0)
    free.attach(limits={}, warmup=0)
    seen: list[list[tuple[float, float, float]]] = [[], []]
    for start in range(0, 320, 16):
        for loop, own in zip((held, free), seen, strict=True):
            loop.run(start, start + 16)
            group = loop.optimizer.param_groups[0]
            own.append((*group["betas"], group["weight_decay"]))
    assert all(0.6 <= first <= 0.9 and 0.9 <= second <= 0.99 and decay == 0.1 for first, second, decay in seen[0])
    assert len({first for first, _, _ in seen[0]}) > 1
    assert any(not 0.6 <= first <= 0.9 or not 0.9 <= second <= 0.99 for first, second, _ in seen[1])
    assert any(decay != 0.1 for *_, decay in seen[1])


def test_the_policy_does_not_see_the_cooldown(tmp_path: Path) -> None:
    """It would lead the rate up again."""
    loop = Loop()
    policy = make_policy(moves="average")
    loop.steering = attach(loop.optimizer, policy, 160, prices=None, cooldown=1.0, ledger=tmp_path / "run.jsonl")
    loop.run(0, 160)
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    entries = read_ledger(tmp_path / "run.jsonl").entries
    seen = [entry["observation"] for entry in entries]
    assert len({round(each["plan_lr"], 6) for each in seen}) == 1
    assert all(each["rate_since_start"] == pytest.approx(0, abs=1e-6) for each in seen)


@pytest.mark.parametrize(("rate", "taken_back"), [(3.0, True), (0.01, False), (1e-5, False)])
def test_a_false_start_is_taken_back(rate: float, taken_back: bool, tmp_path: Path) -> None:
    """From a much too high rate weights explode, and come back useless."""
    loop = Loop(lambda parameters: torch.optim.AdamW(parameters, lr=rate))
    before = loop.weights
    loop.attach(limits={"learning_rate": (rate / 300, rate)}, warmup=0, ledger=tmp_path / "run.jsonl")
    loop.run(0, 16)
    assert torch.equal(loop.weights, before) == taken_back
    entry = read_ledger(tmp_path / "run.jsonl").entries[-1]
    assert entry["verdict"] == ("loss spike" if taken_back else "fine")
    loop.run(16, 160)
    assert not torch.equal(loop.weights, before)


class Restless(torch.optim.AdamW):
    """One that overrides the step of its parent, which PyTorch hooks as well."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.filterwarnings("ignore:.*left as they are")
def test_a_step_within_a_step_counts_once(closure: bool) -> None:
    Loop(torch.optim.AdamW)  # whose step PyTorch hooks from now on
    loop = Loop(Restless)
    steering = loop.attach()
    for number in range(32):
        inputs, labels = read_batch(number)

        def backward(inputs: torch.Tensor = inputs, labels: torch.Tensor = labels) -> torch.Tensor:
            loop.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(loop.model(inputs), labels)
            loss.backward()
            return loss

        loss = loop.optimizer.step(backward) if closure else backward()
        if not closure:
            loop.optimizer.step()
        if number == 20:  # one that ends in an error is none
            with pytest.raises(ZeroDivisionError):
                loop.optimizer.step(lambda: 1 / 0)
        steering.step(loss)
    assert (steering.updates, steering.decisions) == (32, 2)


def test_after_too_many_interventions_the_users_settings_hold_again() -> None:
    loop = Loop()
    steering = loop.attach(guard=1)
    with pytest.warns(UserWarning, match="steering has stopped: the guard"):
        loop.run(0, 32, lambda number, loss: loss * math.nan)
    assert steering.stopped is not None
    assert loop.optimizer.param_groups[0]["lr"] == 1e-2
    decisions = steering.decisions
    loop.run(32, 128)
    assert steering.decisions == decisions
    assert torch.isfinite(loop.weights).all()


def test_snapshots_may_be_the_users_own_files(tmp_path: Path) -> None:
    loop = Loop()

    def save(slot: int) -> None:
        state = {"model": loop.model.state_dict(), "optimizer": loop.optimizer.state_dict()}
        torch.save(state, tmp_path / f"{slot}.pt")

    def restore(slot: int) -> None:
        state = torch.load(tmp_path / f"{slot}.pt")
        loop.model.load_state_dict(state["model"])
        loop.optimizer.load_state_dict(state["optimizer"])

    def spoil(number: int, loss: torch.Tensor) -> torch.Tensor:
        return loss * math.nan if number in (100, 140) else loss

    steering = loop.attach(snapshots=(save, restore))
    loop.run(0, 136, spoil)
    assert torch.isfinite(loop.weights).all()
    assert steering.stopped is None
    for slot in (0, 1):
        file = tmp_path / f"{slot}.pt"
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(LoopwrightError, match=r"the snapshot in slot \d could not be restored"):
        loop.run(136, 160, spoil)


@pytest.mark.parametrize("told", [True, False])
def test_buffers_are_brought_back_where_the_model_is_known(told: bool) -> None:
    model = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    steering = attach(optimizer, make_policy(), prices=None, model=model if told else None)
    for number in range(160):
        inputs, labels = read_batch(number)
        loss = nn.functional.cross_entropy(model(inputs * (math.nan if number == 140 else 1.0)), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        steering.step(loss)
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(b.isfinite().all() for b in model.buffers()) is told


def test_losses_without_updates_are_those_of_another_optimizer() -> None:
    loop = Loop()
    steering = loop.attach()
    loop.run(0, 20)
    loop.optimizer = OPTIMIZERS["AdamW"](loop.model.parameters())
    with pytest.raises(LoopwrightError, match="losses and 4 updates: is it another optimizer"):
        loop.run(20, 1100)
    steering.detach()
    loop.attach()
    loop.run(20, 60)


def test_losses_may_be_of_several_kinds() -> None:
    loop = Loop()
    steering = loop.attach()
    kinds = (lambda x: x.double(), lambda x: x.bfloat16(), float, lambda x: x)
    for number in range(32):
        inputs, labels = read_batch(number)
        loss = nn.functional.cross_entropy(loop.model(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        loop.optimizer.step()
        loop.optimizer.zero_grad()
        steering.step(kinds[number % 4](loss.detach()))
    assert steering.decisions == 2
    assert math.isfinite(steering._seen.sum())


def test_frozen_parameters_and_groups_that_come_later_are_no_obstacle() -> None:
    loop = Loop()
    loop.model[0].requires_grad_(False)
    frozen = loop.model[0].weight.clone()
    steering = loop.attach()
    loop.run(0, 40)
    assert torch.equal(frozen, loop.model[0].weight)
    loop.model[0].requires_grad_(True)
    loop.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 1e-3})
    loop.run(40, 120)
    assert steering.decisions == 7
    assert not torch.equal(frozen, loop.model[0].weight)


def test_what_cannot_be_is_said() -> None:
    loop = Loop()
    steering = loop.attach()
    with pytest.raises(LoopwrightError, match="steered already"):
        attach(loop.optimizer, make_policy())
    with pytest.raises(LoopwrightError, match=r"step\(\) needs the loss"):
        steering.step()
    steering.detach()
    attach(loop.optimizer, make_policy()).detach()
    for options, message in (
        ({"steps": 0}, "steps must be 1 or more"),
        ({"cooldown": 1.5}, "cooldown must be from 0 to 1; got 1.5"),
        ({"guard": -1}, "guard must be 0 or more"),
        ({"limits": {"speed": (0, 1)}}, "limits are for fields of a plan"),
        ({"limits": {"learning_rate": (1, 0)}}, "must be .low, high."),
    ):
        with pytest.raises(LoopwrightError, match=message):
            attach(Loop().optimizer, make_policy(), **options)
    embedding = nn.Embedding(10, 4, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    attach(optimizer, make_policy())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(LoopwrightError, match="sparse gradients cannot be steered"):
        optimizer.step()


def test_what_has_no_counterpart_is_said_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop = Loop(OPTIMIZERS["Adagrad"])
        loop.attach()
        loop.run(0, 64)
    (told,) = [str(w.message) for w in caught]
    assert told.startswith("Adagrad has nothing for the policy's momentum, second_momentum, weight_decay, batch, opt")


def test_the_average_is_applied_for_a_while() -> None:
    loop = Loop()
    steering = loop.attach(limits={"average": (8.0, 8.0)})
    loop.run(0, 64)
    raw = loop.weights
    with steering.averaged():
        assert not torch.equal(raw, loop.weights)
        assert (loop.weights - raw).norm() < 0.2 * raw.norm()
    assert torch.equal(raw, loop.weights)
    steering.validate(0.5)
    loop.run(64, 96)
    assert steering.decisions == 6


RULES = (
    LoopPlan(batch=1, learning_rate=1e-2, weight_decay=0.1),
    LoopPlan(batch=3, learning_rate=1e-2, momentum=0.5),
    LoopPlan(optimizer="muon", batch=2, learning_rate=1e-2),
    LoopPlan(optimizer="sinkgd", batch=1, learning_rate=1e-2, second_momentum=0.9),
    LoopPlan(optimizer="sgd", batch=2, learning_rate=0.1, clip=0.3),
)


def test_the_optimizer_that_can_do_all_does_what_the_reference_does(small_task: Task) -> None:
    """Under one plan after another, with what the last one has gathered."""
    reference = ReferenceLoop(small_task, 3, dtype=torch.float64)
    model = small_task.model.build().double()
    model.load_state_dict(reference.model.state_dict())
    optimizer = make_optimizer(model)
    key = make_key(torch.tensor([3]))
    for number, plan in enumerate(RULES):
        optimizer.share(rule=plan.optimizer, batch=plan.batch, clip=plan.clip)
        optimizer.param_groups[0].update(
            lr=plan.learning_rate, momentum=plan.momentum, second_momentum=plan.second_momentum,
            weight_decay=plan.weight_decay,
        )  # fmt: skip
        reference.run(plan, 20)
        for tick in range(20 * number, 20 * number + 20):
            index = draw_candidates(key, torch.tensor([tick]), 16, len(small_task.train))[0][0]
            inputs, labels = small_task.train.inputs[index].double(), small_task.train.labels[index]
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        for ours, theirs in zip(model.parameters(), reference.parameters, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(optimizer.step_ratio(), reference.step_ratio(), rtol=1e-3, atol=0)


def test_a_whole_policy_moves_rule_and_batch_of_an_optimizer_that_can() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is off
        loop = Loop(OPTIMIZERS["PlanOptimizer"])
        steering = loop.attach()
    seen = set()
    for start in range(0, 640, 16):
        loop.run(start, start + 16)
        group = loop.optimizer.param_groups[0]
        seen.add((group["rule"], group["batch"]))
    assert steering.iterations == 640 >= steering.updates
    assert steering.decisions == count_decisions(16, 640)
    assert len(seen) > 1


TOGETHER = """
import os, sys, warnings
import torch
from torch import distributed, nn
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[3])
torch.set_num_threads(1)
from test_steering import make_policy, read_batch
import loopwright
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 2)))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
steering = loopwright.attach(optimizer, make_policy(), 1000, prices=None, ledger=sys.argv[4])
for number in range(64):
    inputs, labels = read_batch(2 * number + rank)
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    strange = {0: 0.01, 40: float("nan")}.get(number, 1.0) if rank == 1 else 1.0  # as one process alone may find it
    steering.step(loss.detach() * strange)
    interventions = steering._guard._guard.interventions
weights = sum(p.double().sum().item() for p in model.parameters())
print(steering.decisions, interventions, steering.plan["learning_rate"], weights)
steering.detach()
distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # threads of gloo that live as the interpreter ends make it crash at times, its group destroyed or not
"""


def test_processes_that_train_together_follow_the_first(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TOGETHER]
    where = [str(tmp_path / "store"), str(Path(__file__).parent), str(tmp_path / "run.jsonl")]
    running = [
        subprocess.Popen([*command, str(rank), *where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    first, second = (printed.splitlines()[-1] for printed, _ in said)  # what comes before is gloo's
    assert first == second
    assert first.startswith("4 1.0 ")
    assert len(read_ledger(tmp_path / "run.jsonl").entries) == 5  # the first's alone


def test_an_update_that_a_scaler_skips_is_none() -> None:
    """Scaled by 1e4, with an overflow in the third: what a GradScaler does on devices that have one."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1e4)
    plain, scaled = Loop(), Loop()
    first, second = plain.attach(), scaled.attach()
    plain.run(0, 2)
    plain.run(3, 64)
    for number in range(64):
        inputs, labels = read_batch(number)
        loss = nn.functional.cross_entropy(scaled.model(inputs), labels)
        scaler.scale(loss * math.inf if number == 2 else loss).backward()
        scaler.step(scaled.optimizer)
        scaler.update(1e4)
        scaled.optimizer.zero_grad()
        second.step(loss)
    assert second.updates == 63
    assert second.stopped is None
    assert first.plan["learning_rate"] == pytest.approx(second.plan["learning_rate"], rel=0.05)


PRICES = {"sgd": 0.1, "adamw": 0.2, "sinkgd": 1.0, "muon": 10.0}


@pytest.mark.parametrize("name", ["AdamW", "SGD", "PlanOptimizer"])
def test_prices_are_measured_in_the_first_decision_and_then_stay(name: str) -> None:
    loop = Loop(OPTIMIZERS[name])
    steering = loop.attach(prices="measured", limits={"batch": (1.0, 1.0)})
    loop.run(0, 16)
    assert steering.prices is not None
    assert set(steering.prices) == set(PRICES)
    assert all(0 < passes < 1000 for passes in steering.prices.values())
    assert steering._seen[0, OBSERVATION_NAMES.index("prices_given")] == 1
    shown = {rule: 10 ** float(steering._seen[0, OBSERVATION_NAMES.index(f"price_{rule}")]) for rule in PRICES}
    assert shown == pytest.approx({rule: max(own, 1e-3) for rule, own in steering.prices.items()}, rel=1e-3)
    before = dict(steering.prices)
    loop.run(16, 48)
    assert steering.prices == before


def test_an_update_that_takes_longer_costs_more() -> None:
    def measure(pause: float) -> float:
        loop = Loop(OPTIMIZERS["AdamW"])
        steering = loop.attach(prices="measured")
        loop.optimizer.register_step_pre_hook(lambda *_: time.sleep(pause))  # after steering's own: within the update
        loop.run(0, 16)
        assert steering.prices is not None
        return steering.prices["adamw"]

    assert measure(0.1) > 3 * measure(0.0)


def test_prices_can_be_given_and_are_kept_by_a_resumed_job() -> None:
    loop = Loop(OPTIMIZERS["AdamW"])
    steering = loop.attach(prices=PRICES)
    assert steering.prices == PRICES
    assert steering._seen[0, OBSERVATION_NAMES.index("prices_given")] == 1
    state = steering.state_dict()
    again = Loop(OPTIMIZERS["AdamW"])
    resumed = again.attach(prices="measured")
    resumed.load_state_dict(state)
    again.run(0, 16)
    assert resumed.prices == PRICES
    for wrong in ("gradients", {"adamw": 1.0}, PRICES | {"muon": math.nan}):
        with pytest.raises(LoopwrightError, match="price"):
            Loop(OPTIMIZERS["AdamW"]).attach(prices=wrong)


@pytest.mark.parametrize("name", ["AdamW", "PlanOptimizer"])
def test_a_closure_makes_no_difference(name: str) -> None:
    plain, closed = Loop(OPTIMIZERS[name]), Loop(OPTIMIZERS[name])
    first, second = plain.attach(), closed.attach()
    plain.run(0, 100)
    for number in range(100):
        inputs, labels = read_batch(number)

        def make_gradients(inputs: torch.Tensor = inputs, labels: torch.Tensor = labels) -> torch.Tensor:
            closed.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(closed.model(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        second.step(closed.optimizer.step(make_gradients))
    assert torch.equal(plain.weights, closed.weights)
    assert first.decisions == second.decisions == 6
