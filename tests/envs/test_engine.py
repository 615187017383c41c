"""The engine's specification: Lanes is ReferenceLoop, many times over."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.envs.lanes import Lanes, compiler_available
from loopwright.envs.plan import OPTIMIZERS, LoopPlan, stack_plans, unstack_plans
from loopwright.envs.randomness import control_indices, make_key, microbatch_indices
from loopwright.envs.reference import ReferenceLoop
from loopwright.envs.telemetry import SUMS
from loopwright.inner_tasks import Task, get_task
from loopwright.inner_tasks.errors import LoopwrightError

BASE = {
    "sgd": LoopPlan(optimizer="sgd", learning_rate=0.1, batch=1),
    # AdamW divides by the root of the second moment: where a gradient is nearly zero, rounding decides a step's sign.
    "adamw": LoopPlan(optimizer="adamw", learning_rate=1e-3, batch=1),
}
KNOB_SETTINGS: dict[str, list[dict[str, object]]] = {
    "lr": [{"learning_rate": 0.0}, {"learning_rate": 3e-3}],
    "momentum": [{"momentum": 0.0}, {"momentum": 0.97}],
    "second_momentum": [{"second_momentum": 0.9}],
    "weight_decay": [{"weight_decay": 0.3}],
    "clip": [{"clip": 0.3}, {"clip": 1.5}],
    "batch": [{"batch": 2}, {"batch": 5}],
    "average": [{"average": 8.0}, {"average": 128.0}],
}


def flat(loop: ReferenceLoop, of: str) -> torch.Tensor:
    return torch.cat([t.detach().flatten() for t in getattr(loop, of)])


def assert_same_run(task: Task, plans: list[list[LoopPlan]], ticks: int) -> None:
    """One lane per seed; ``plans[i]`` is what lane i follows in turn, ``ticks`` at a time."""
    lanes = Lanes(task, len(plans))
    seeds = [11 + 7 * i for i in range(len(plans))]
    lanes.load(range(len(plans)), [task] * len(plans), seeds)
    loops = [ReferenceLoop(task, seed) for seed in seeds]
    for turn in range(len(plans[0])):
        now = [lane[turn] for lane in plans]
        fast = lanes.run(stack_plans(now), ticks)
        plain = torch.stack([loop.run(plan, ticks) for loop, plan in zip(loops, now, strict=True)], dim=1)
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=2e-2, msg=lambda m: f"{SUMS}: {m}")
        for name, of in (("weights", "parameters"), ("average", "average"), ("momentum", "momentum")):
            reference = torch.stack([flat(loop, of) for loop in loops])
            torch.testing.assert_close(getattr(lanes.state, name), reference, rtol=1e-3, atol=5e-4)
        loss, accuracy = lanes.evaluate("target")
        for i, loop in enumerate(loops):
            expected_loss, expected_accuracy = loop.evaluate(task.target)
            assert loss[i].item() == pytest.approx(expected_loss, rel=2e-3)
            assert accuracy[i].item() == pytest.approx(expected_accuracy, abs=0.01)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("knob", KNOB_SETTINGS)
def test_lanes_equal_the_reference_over_100_updates(optimizer: str, knob: str, small_task: Task) -> None:
    values = [replace(BASE[optimizer], **change) for change in KNOB_SETTINGS[knob]]  # type: ignore[arg-type]
    per_update = max(plan.batch for plan in values)
    assert_same_run(small_task, [[plan] * 4 for plan in values], 25 * per_update)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_lanes_equal_the_reference_on_every_shape(optimizer: str, any_task: Task) -> None:
    assert_same_run(any_task, [[BASE[optimizer]] * 4], 25)


plans = st.builds(
    LoopPlan,
    optimizer=st.sampled_from(OPTIMIZERS),
    learning_rate=st.floats(1e-5, 3e-3),
    momentum=st.floats(0, 0.98),
    weight_decay=st.floats(0, 0.1),
    clip=st.one_of(st.just(math.inf), st.floats(0.1, 5)),
    batch=st.integers(1, 8),
    average=st.sampled_from([0.0, 8.0, 32.0]),
)


@settings(max_examples=15)
@given(st.lists(plans, min_size=6, max_size=6))
def test_lanes_equal_the_reference_when_the_plan_keeps_changing(chosen: list[LoopPlan]) -> None:
    assert_same_run(get_task("breast-cancer:0"), [chosen, chosen[::-1]], 16)


def test_a_lane_does_not_depend_on_its_neighbours(small_task: Task) -> None:
    many, alone = Lanes(small_task, 9), Lanes(small_task, 1)
    many.load(range(9), [small_task] * 9, range(9))
    alone.load([0], [small_task], [4])
    plan = LoopPlan(learning_rate=3e-3)
    mixed = [replace(plan, learning_rate=10.0 ** -(i % 5), batch=i % 4 + 1) for i in range(9)]
    mixed[4] = plan
    many.run(stack_plans(mixed), 60)
    alone.run(stack_plans([plan]), 60)
    torch.testing.assert_close(many.state.weights[4], alone.state.weights[0], rtol=1e-4, atol=1e-5)


def test_a_diverged_lane_leaves_the_others_alone(small_task: Task) -> None:
    def second_lane(first: LoopPlan) -> torch.Tensor:
        lanes = Lanes(small_task, 2)
        lanes.load(range(2), [small_task] * 2, [1, 2])
        lanes.run(stack_plans([first, LoopPlan()]), 30)
        return lanes.state.weights[1].clone()

    wild = LoopPlan(optimizer="sgd", learning_rate=1e30)
    assert torch.equal(second_lane(wild), second_lane(LoopPlan()))


@pytest.mark.skipif(not compiler_available(), reason="no C++ compiler")
def test_the_compiled_tick_equals_the_eager_one(small_task: Task) -> None:
    plan = stack_plans([LoopPlan(learning_rate=2e-3, batch=i + 1, average=8.0 * i, clip=1.0) for i in range(4)])
    results = []
    for compile in (False, True):
        lanes = Lanes(small_task, 4, compile=compile)
        lanes.load(range(4), [small_task] * 4, range(4))
        results.append((lanes.run(plan, 50), lanes.state.weights.clone(), lanes.state.average.clone()))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=1e-3, atol=1e-3)


TORCH_TWINS = {
    "adamw": (
        LoopPlan(learning_rate=2e-3, weight_decay=0.1, batch=1),
        lambda parameters: torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.1),
    ),
    # sgd averages its gradients: torch's, at (1 - momentum) times the learning rate
    "sgd": (
        LoopPlan(optimizer="sgd", learning_rate=0.1, momentum=0.8, batch=1),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1 * (1 - 0.8), momentum=0.8),
    ),
}


@pytest.mark.parametrize("name", TORCH_TWINS)
def test_the_reference_is_torchs_own_optimizer(name: str, small_task: Task) -> None:
    plan, make_optimizer = TORCH_TWINS[name]
    loop = ReferenceLoop(small_task, 3)
    model = small_task.model.build()
    model.load_state_dict(loop.model.state_dict())
    optimizer = make_optimizer(model.parameters())
    key = make_key(torch.tensor([3]))
    for tick in range(40):
        index = microbatch_indices(key, torch.tensor([tick]), 16, len(small_task.train))[0]
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(small_task.train.inputs[index]), small_task.train.labels[index])
        loss.backward()
        optimizer.step()
    loop.run(plan, 40)
    for ours, theirs in zip(loop.parameters, model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_average_has_its_closed_form(small_task: Task) -> None:
    loop = ReferenceLoop(small_task, 0)
    expected = flat(loop, "parameters")
    for _ in range(10):
        loop.run(LoopPlan(batch=2, average=4.0), 2)
        kept = 0.5 ** (2 / 4)
        expected = kept * expected + (1 - kept) * flat(loop, "parameters")
    torch.testing.assert_close(flat(loop, "average"), expected)


def test_clipping_bounds_the_step(small_task: Task) -> None:
    loop = ReferenceLoop(small_task, 0)
    before = flat(loop, "parameters").clone()
    sums = loop.run(LoopPlan(optimizer="sgd", learning_rate=1.0, momentum=0.0, clip=0.01, batch=1), 1)
    assert (flat(loop, "parameters") - before).norm().item() == pytest.approx(0.01, rel=1e-3)
    assert sums[SUMS.index("clipped")] == 1


def test_batch_updates_only_when_full(small_task: Task) -> None:
    lanes = Lanes(small_task, 1)
    lanes.load([0], [small_task], [0])
    before = lanes.state.weights.clone()
    sums = lanes.run(stack_plans([LoopPlan(batch=4)]), 3)
    assert torch.equal(before, lanes.state.weights)
    assert sums[SUMS.index("updates")].item() == 0
    assert lanes.run(stack_plans([LoopPlan(batch=4)]), 1)[SUMS.index("updates")].item() == 1
    assert not torch.equal(before, lanes.state.weights)


def test_streams_are_uniform_and_apart() -> None:
    key = make_key(torch.arange(200))
    index = torch.cat([microbatch_indices(key, torch.full((200,), t), 16, 100) for t in range(50)], dim=1)
    counts = torch.bincount(index.flatten(), minlength=100).double()
    expected = index.numel() / 100
    assert index.min() >= 0
    assert index.max() <= 99
    assert ((counts - expected) ** 2 / expected).sum() < 150  # chi-square, 99 degrees of freedom: p = 7e-4
    assert not torch.equal(index[0], index[1])
    control = control_indices(key, torch.zeros(200, dtype=torch.int64), 16, 100)
    assert (control == index[:, :16]).double().mean() < 0.03


def test_plans_survive_stacking() -> None:
    plan = LoopPlan("sgd", 0.125, 0.5, 0.75, 0.25, math.inf, 4, 32.0)
    assert unstack_plans(stack_plans([plan, LoopPlan()])) == [plan, unstack_plans(stack_plans([LoopPlan()]))[0]]


@pytest.mark.parametrize(
    ("field", "value"),
    [("optimizer", "lion"), ("learning_rate", -1), ("learning_rate", math.nan), ("momentum", 1.0), ("clip", 0.0),
     ("batch", 0), ("batch", 1.5), ("average", -1.0), ("weight_decay", math.inf)],
)  # fmt: skip
def test_a_bad_plan_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(LoopwrightError, match=field):
        LoopPlan(**{field: value})  # type: ignore[arg-type]


def test_bad_lanes_are_refused(small_task: Task) -> None:
    with pytest.raises(LoopwrightError, match="lanes must be 1 or more, got 0"):
        Lanes(small_task, 0)
    lanes = Lanes(small_task, 1)
    with pytest.raises(LoopwrightError, match="shape"):
        lanes.load([0], [get_task("mixtures:0")], [0])
