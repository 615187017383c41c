"""The engine's specification: Lanes is ReferenceLoop, many times over."""

import copy
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwright.envs.engine.cost import measure_cost
from loopwright.envs.engine.fusing import has_compiler
from loopwright.envs.engine.lanes import Lanes
from loopwright.envs.engine.plain import PlainLoop
from loopwright.envs.engine.randomness import draw_candidates, draw_control_samples, make_key
from loopwright.envs.engine.reference import ReferenceLoop
from loopwright.envs.engine.scope import Scope, find_scope
from loopwright.envs.engine.serial_lanes import SerialLanes
from loopwright.envs.episode.snapshots import LaneSnapshots
from loopwright.envs.loop.arithmetic import Many, One
from loopwright.envs.loop.compiled import find_c_compiler
from loopwright.envs.loop.compiled_probe import CompiledProbe, make_probe
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.knobs import KNOBS
from loopwright.envs.loop.plan import CHOICES, OPTIMIZERS, ROW, LoopPlan, stack_plans, unstack_plans
from loopwright.envs.loop.probe import Probe
from loopwright.envs.loop.telemetry import PROBE, SUMS, WINDOW, Statistics, summarise
from loopwright.inner_tasks import ModelSpec, Split, Task, get_task, list_families
from loopwright.inner_tasks.models import RecurrentNet, Transformer
from loopwright.inner_tasks.task import SPLITS

FloatArray = npt.NDArray[np.floating]
BASE = {
    "sgd": LoopPlan(optimizer="sgd", learning_rate=0.1, batch=1),
    # AdamW divides by the root of the second moment: where a gradient is nearly zero, rounding decides a step's sign.
    "adamw": LoopPlan(optimizer="adamw", learning_rate=1e-3, batch=1),
    "sinkgd": LoopPlan(optimizer="sinkgd", learning_rate=1e-3, batch=1),
    "muon": LoopPlan(optimizer="muon", learning_rate=1e-3, batch=1),
}
KNOB_SETTINGS: dict[str, list[dict[str, object]]] = {
    "lr": [{"learning_rate": 0.0}, {"learning_rate": 3e-3}],
    "momentum": [{"momentum": 0.0}, {"momentum": 0.97}],
    "second_momentum": [{"second_momentum": 0.9}],
    "weight_decay": [{"weight_decay": 0.3}],
    "clip": [{"clip": 0.3}, {"clip": 1.5}],
    "batch": [{"batch": 2}, {"batch": 5}],
    "average": [{"average": 8.0}, {"average": 128.0}],
    "depth": [{"depth": 0.25}, {"depth": 0.5}, {"depth": 0.75}],
    "keep": [{"keep": 0.5}, {"keep": 0.125}],
    "order": [{"order": "hard-first"}, {"order": "easy-first"}],
    "echo": [{"echo": 2}, {"echo": 8}],
    "sweep": [{"sweep": "top-down"}, {"sweep": "bottom-up"}, {"sweep": "bottom-up", "depth": 0.5}],
}
EXACT = torch.float64  # so that a choice by loss (order, keep) cannot tip over on a rounding error


def flat(loop: ReferenceLoop, of: str) -> torch.Tensor:
    return torch.cat([t.detach().flatten() for t in getattr(loop, of)])


def summarise_both(
    fast: Statistics, plain: list[Statistics], plans: list[LoopPlan]
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Sums and telemetry of lanes, and those of the same runs by themselves, each ``[runs]``."""
    clips = np.array([plan.clip for plan in plans])
    with np.errstate(all="ignore"):
        ours = dict(zip(SUMS, fast.sums, strict=True)) | summarise(fast, clips, Many(len(plans)))
    alone = [dict(zip(SUMS, own.sums[:, 0], strict=True)) | summarise(own, plan.clip, One())
             for own, plan in zip(plain, plans, strict=True)]  # fmt: skip
    return ours, {name: np.array([each[name] for each in alone]) for name in ours}


class Pair:
    """The same runs in Lanes, or SerialLanes, and in ReferenceLoop."""

    def __init__(self, task: Task, runs: int, dtype: torch.dtype = EXACT, engine: type[Lanes] = Lanes) -> None:
        self.task = task
        self.lanes = engine(task, runs, dtype=dtype)
        seeds = [11 + 7 * i for i in range(runs)]
        self.lanes.load(range(runs), [task] * runs, seeds)
        self.loops = [ReferenceLoop(task, seed, dtype=dtype) for seed in seeds]

    def run(self, plans: list[LoopPlan], ticks: int) -> None:
        fast = self.lanes.run(stack_plans(plans, EXACT), ticks)
        plain = [loop.run(plan, ticks) for loop, plan in zip(self.loops, plans, strict=True)]
        ours, theirs = summarise_both(fast, plain, plans)
        for name, values in ours.items():
            np.testing.assert_allclose(values, theirs[name], rtol=1e-4, atol=1e-4, err_msg=name)
        self.compare()

    def compare(self) -> None:
        for name, of in (("weights", "parameters"), ("average", "average"), ("momentum", "momentum"),
                         ("gradient_sum", "gradient_sum")):  # fmt: skip
            reference = torch.stack([flat(loop, of) for loop in self.loops])
            torch.testing.assert_close(getattr(self.lanes.state, name), reference, rtol=1e-7, atol=1e-9)
        for lane, loop in enumerate(self.loops):
            assert self.lanes.state.microbatch[lane].tolist() == loop.microbatch_read.tolist()
        loss, metric = self.lanes.evaluate("target")
        for i, loop in enumerate(self.loops):
            expected_loss, expected_metric = loop.evaluate(self.task.target)
            assert loss[i].item() == pytest.approx(expected_loss, rel=1e-6)
            assert metric[i].item() == pytest.approx(expected_metric, abs=1e-3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("knob", KNOB_SETTINGS)
def test_lanes_equal_the_reference_over_100_updates(optimizer: str, knob: str, small_task: Task) -> None:
    plans = [replace(BASE[optimizer], **change) for change in KNOB_SETTINGS[knob]]  # type: ignore[arg-type]
    pair = Pair(small_task, len(plans))
    for _ in range(4):
        pair.run(plans, 25 * max(plan.batch for plan in plans))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("knob", KNOB_SETTINGS)
def test_serial_lanes_equal_the_reference(optimizer: str, knob: str, small_task: Task) -> None:
    plans = [replace(BASE[optimizer], **change) for change in KNOB_SETTINGS[knob]]  # type: ignore[arg-type]
    pair = Pair(small_task, len(plans), engine=SerialLanes)
    for _ in range(2):
        pair.run(plans, 8 * max(plan.batch for plan in plans) + 1)


def scaled_task(scale: float) -> Task:
    """Regression whose gradients are ``scale`` times those of the plain one."""
    plain = list_families()["diabetes"].make_plain()
    splits = {
        name: Split(getattr(plain, name).inputs, scale * getattr(plain, name).labels) for name in SPLITS
    }  # fmt: skip
    return replace(plain, initial_scale=1e-3 * min(scale, 1.0), **splits)


# What of the telemetry is no difference of nearly equal numbers.
SMALL = ("log_gradient_norm", "gradient_cosine", "momentum_cosine", "log_momentum_ratio", "log_step_ratio")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1.0, 1e4, 1e10])
def test_lanes_equal_the_reference_in_float32_whatever_the_gradients_size(optimizer: str, scale: float) -> None:
    """Steps that hardly move the weights keep rounding errors apart."""
    small = min(scale, 1.0)
    rate = 1e-2 * small / scale if optimizer == "sgd" else 1e-4 * small
    plan = LoopPlan(optimizer=optimizer, learning_rate=rate, batch=2)
    pair = Pair(scaled_task(scale), 2, torch.float32)
    plans = [plan, replace(plan, clip=0.5 * scale)]
    for _ in range(3):
        fast = pair.lanes.run(stack_plans(plans), 10)
        plain = [loop.run(plan, 10) for loop, plan in zip(pair.loops, plans, strict=True)]
        ours, theirs = summarise_both(fast, plain, plans)
        for name in SMALL:  # squares of the loss are beyond float32 here; what cancels to nothing is rounding error
            assert np.isfinite(ours[name]).all()
            np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-3, atol=5e-3, err_msg=name)


def updated_by(task: Task, plan: LoopPlan, gradient: torch.Tensor) -> Lanes:
    """One lane after an update by the gradient ``[parameters]``."""
    lanes = Lanes(task, 1)
    lanes.load([0], [task], [0])
    with torch.no_grad():
        plans, losses = stack_plans([plan]), torch.ones(1, lanes.microbatch)
        gradient, state = lanes._find_mask()(plans, gradient[None], *lanes.state.tensors()), lanes.state.tensors()
        lanes._find_update(Scope.WHOLE, False)(plans, losses, gradient, torch.zeros_like(gradient), *state)
    return lanes


def test_what_overflows_in_a_frozen_prefix_is_not_seen(small_task: Task) -> None:
    layout = Lanes(small_task, 1).layout
    gradient = torch.where(layout.block_of == 0, math.inf, 0.01)
    lanes = updated_by(small_task, LoopPlan(batch=1, depth=0.5), gradient)
    assert torch.isfinite(lanes.state.weights).all()
    assert not torch.isfinite(updated_by(small_task, LoopPlan(batch=1), gradient).state.weights).all()


def test_without_clipping_an_infinite_norm_clips_nothing(small_task: Task) -> None:
    gradient = torch.full((Lanes(small_task, 1).layout.parameters,), 1e20)  # finite, but not its norm in float32
    state = updated_by(small_task, LoopPlan(optimizer="sgd", learning_rate=1e-20, batch=1), gradient).state
    assert torch.isfinite(state.weights).all()
    assert state.momentum[0, 0].item() == pytest.approx(1e19)


def test_every_knob_is_held_to_the_reference() -> None:
    fields = {knob.field for knob in KNOBS.values()}
    tried = {field for changes in KNOB_SETTINGS.values() for change in changes for field in change}
    assert fields - tried == {"optimizer", "rollback"}  # the parameter of every test here, and the next test


@pytest.mark.parametrize("engine", [Lanes, SerialLanes])
def test_lanes_equal_the_reference_after_a_snapshot_is_restored(engine: type[Lanes], small_task: Task) -> None:
    pair = Pair(small_task, 2, engine=engine)
    plans = [LoopPlan(batch=3, average=8.0, order="hard-first", echo=2), LoopPlan(sweep="top-down")]
    first = [loop.snapshot() for loop in pair.loops]
    pair.run(plans, 20)
    stored = LaneSnapshots(pair.lanes)
    stored.save(np.array([True, True]))
    snapshots = [loop.snapshot(earlier) for loop, earlier in zip(pair.loops, first, strict=True)]
    pair.run([replace(plan, learning_rate=0.1, optimizer="sgd") for plan in plans], 17)
    stored.restore(np.array([True, False]))
    pair.loops[0].restore(snapshots[0])
    pair.compare()
    pair.run(plans, 20)


@pytest.mark.parametrize("engine", [Lanes, SerialLanes])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_lanes_equal_the_reference_on_every_shape(optimizer: str, engine: type[Lanes], any_task: Task) -> None:
    Pair(any_task, 1, engine=engine).run([replace(BASE[optimizer], depth=0.5, keep=0.5)], 50)


SEQUENCE_MODELS = {
    "gru": RecurrentNet(6, 5, 8, 2, 2),
    "tanh": RecurrentNet(6, 5, 8, 2, 2, cell="tanh"),
    "transformer": Transformer(6, 5, 8, 2, 2, 2),
    "gru-language-model": RecurrentNet(6, 5, 8, 2, 5, every_step=True, tokens=True),
    "transformer-language-model": Transformer(6, 5, 8, 2, 2, 5, every_step=True, tokens=True),
}


def sequence_task(model: ModelSpec) -> Task:
    """The 30 columns of a table read as 6 steps of 5; or of each step the largest, and the next to be predicted."""
    table = get_task("breast-cancer:1")
    splits = {}
    for name in SPLITS:
        steps, labels = getattr(table, name).inputs.view(-1, 6, 5), getattr(table, name).labels
        tokens = steps.argmax(-1)
        splits[name] = Split(steps, labels) if model.vocabulary is None else Split(tokens, tokens.roll(-1, 1))
    return replace(table, model=model, **splits)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", SEQUENCE_MODELS.values(), ids=SEQUENCE_MODELS)
@pytest.mark.parametrize("change", [{"depth": 0.5}, {"sweep": "top-down"}, {"sweep": "bottom-up", "depth": 0.75}])
def test_blocks_mean_something_in_sequence_models(model: ModelSpec, change: dict[str, object]) -> None:
    Pair(sequence_task(model), 1).run([replace(BASE["adamw"], **change)], 20)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["diabetes", "rosenbrock", "quadratic", "recall", "signals"])
def test_lanes_equal_the_reference_on_other_losses_and_landscapes(family: str) -> None:
    plan = replace(BASE["adamw"], keep=0.5, order="hard-first", sweep="top-down")
    Pair(list_families()[family].make_plain(), 1).run([plan], 30)


plans = st.builds(
    LoopPlan,
    optimizer=st.sampled_from(OPTIMIZERS),
    learning_rate=st.floats(1e-5, 3e-3),
    momentum=st.floats(0, 0.98),
    second_momentum=st.floats(0.5, 0.999),
    weight_decay=st.floats(0, 0.1),
    clip=st.one_of(st.just(math.inf), st.floats(0.1, 5)),
    batch=st.integers(1, 4),
    average=st.sampled_from([0.0, 8.0, 32.0]),
    depth=st.floats(0.01, 1),
    keep=st.floats(0.01, 1),
    order=st.sampled_from(CHOICES["order"]),
    echo=st.integers(1, 4),
    sweep=st.sampled_from(CHOICES["sweep"]),
)


@pytest.mark.parametrize("engine", [Lanes, SerialLanes])
@settings(max_examples=5)
@given(chosen=st.lists(plans, min_size=50, max_size=50))
def test_lanes_equal_the_reference_when_the_plan_keeps_changing(engine: type[Lanes], chosen: list[LoopPlan]) -> None:
    pair = Pair(get_task("breast-cancer:1"), 1, engine=engine)
    for plan in chosen:
        pair.run([plan], 5 * plan.batch)  # five updates, or four and what the plan before had gathered


def block_weights(task: Task, plan: LoopPlan, ticks: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The weights of each block in a lane before and after."""
    lanes = Lanes(task, 1)
    lanes.load([0], [task], [0])
    block_of = lanes.layout.block_of
    before = lanes.state.weights[0].clone()
    lanes.run(stack_plans([plan]), ticks)
    after = lanes.state.weights[0]
    return [(before[block_of == b], after[block_of == b]) for b in range(lanes.layout.blocks)]


def test_depth_leaves_the_prefix_bit_identical(small_task: Task) -> None:
    for depth, frozen in ((1 / 3, 2), (2 / 3, 1), (1.0, 0)):
        blocks = block_weights(small_task, LoopPlan(depth=depth, weight_decay=0.1, batch=1), 20)
        assert [torch.equal(before, after) for before, after in blocks] == [b < frozen for b in range(3)]


@pytest.mark.parametrize(("sweep", "turns"), [("top-down", (2, 1, 0, 2)), ("bottom-up", (0, 1, 2, 0))])
def test_sweep_updates_one_block_an_update(sweep: str, turns: tuple[int, ...], small_task: Task) -> None:
    lanes = Lanes(small_task, 1)
    lanes.load([0], [small_task], [0])
    for block in turns:
        before = lanes.state.weights[0].clone()
        lanes.run(stack_plans([LoopPlan(sweep=sweep, batch=2)]), 2)
        changed = lanes.layout.block_of[before != lanes.state.weights[0]].unique()
        assert changed.tolist() == [block]


@pytest.mark.parametrize("echo", [1, 3])
def test_echo_reads_a_microbatch_so_often(echo: int, small_task: Task) -> None:
    lanes = Lanes(small_task, 1)
    lanes.load([0], [small_task], [0])
    read = []
    for _ in range(12):
        lanes.run(stack_plans([LoopPlan(echo=echo, order="hard-first")]), 1)
        read.append(tuple(lanes.state.microbatch[0].tolist()))
    assert read == [batch for batch in read[::echo] for _ in range(echo)]
    assert len(set(read)) == 12 // echo


def mean_last_loss(task: Task, order: str) -> float:
    """The mean last seen loss, before they are read again, of the samples an order chooses after a warm-up."""
    lanes = Lanes(task, 1)
    lanes.load([0], [task], [0])
    plan = LoopPlan(learning_rate=3e-3)
    lanes.run(stack_plans([plan]), 300)
    chosen = []
    for _ in range(40):
        known = lanes.state.last_loss[0].clone()
        lanes.run(stack_plans([replace(plan, order=order, learning_rate=0.0)]), 1)
        chosen.append(known[lanes.state.microbatch[0]])
    losses = torch.cat(chosen)
    return losses[torch.isfinite(losses)].mean().item()


def test_order_samples_by_last_seen_loss(small_task: Task) -> None:
    easy, shuffled, hard = (mean_last_loss(small_task, order) for order in CHOICES["order"])
    assert hard > 1.5 * shuffled > 2.25 * easy


def test_both_orders_read_the_unseen_first(small_task: Task) -> None:
    seen = {}
    for order in CHOICES["order"]:
        lanes = Lanes(small_task, 1)
        lanes.load([0], [small_task], [0])
        lanes.run(stack_plans([LoopPlan(order=order)]), 20)
        seen[order] = int(torch.isfinite(lanes.state.last_loss).sum())
    assert seen["hard-first"] > seen["shuffled"] < seen["easy-first"]


def test_keep_back_propagates_the_largest_losses(small_task: Task) -> None:
    loop = ReferenceLoop(small_task, 0, dtype=EXACT)
    model = copy.deepcopy(loop.model)
    loop.run(LoopPlan(optimizer="sgd", learning_rate=1.0, momentum=0.0, batch=1, keep=0.25), 1)
    index = loop.microbatch_read
    losses = torch.nn.functional.cross_entropy(
        model(small_task.train.inputs[index].to(EXACT)), small_task.train.labels[index], reduction="none"
    )
    losses.topk(4).values.mean().backward()
    for ours, theirs in zip(loop.parameters, model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - theirs.grad)  # type: ignore[operator]


def test_what_a_plan_leaves_out_is_not_charged(small_task: Task) -> None:
    def geq(**change: object) -> float:
        loop = ReferenceLoop(small_task, 0)
        return loop.run(LoopPlan(batch=1, **change), 6).total("cost").item() / (6 * 16)  # type: ignore[arg-type]

    unit = measure_cost(small_task.model)
    assert geq() == geq(order="hard-first") == geq(echo=2) == 1
    assert geq(depth=1 / 3) == pytest.approx(unit.path[2])
    assert geq(keep=0.25) == pytest.approx(0.25 + unit.forward)
    assert geq(sweep="top-down") == pytest.approx(sum(unit.single) / 3)
    assert unit.forward < unit.path[2] < unit.path[1] < unit.path[0] == 1


def test_a_switch_of_optimizer_keeps_the_length_of_the_step(small_task: Task) -> None:
    lanes = Lanes(small_task, 1)
    lanes.load([0], [small_task], [0])
    plans = stack_plans([LoopPlan(batch=1, learning_rate=1e-3)])
    assert lanes.step_ratio().item() == 1
    lanes.run(plans, 40)

    def step_of(plans: torch.Tensor) -> float:
        found = summarise(lanes.run(plans, 2), plans[ROW["clip"]].numpy(), Many(1))["log_step_ratio"]
        return float(found[0])

    before = step_of(plans)
    loop = ReferenceLoop(small_task, 0)
    assert loop.step_ratio().item() == 1
    loop.run(unstack_plans(plans)[0], 42)
    torch.testing.assert_close(loop.step_ratio(), lanes.step_ratio(), rtol=1e-2, atol=0)
    switched = KnobSet("optimizer").apply([[1]], plans, lanes.step_ratio)
    assert switched[ROW["optimizer"]].item() == 0
    assert switched[ROW["learning_rate"]].item() > 2e-3
    assert step_of(switched) == pytest.approx(before, abs=0.2)
    back = KnobSet("optimizer").apply([[3]], switched, lanes.step_ratio)
    assert back[ROW["learning_rate"]].item() == pytest.approx(1e-3, rel=0.2)


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


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_the_compiled_tick_equals_the_eager_one(small_task: Task) -> None:
    plan = stack_plans(
        [
            LoopPlan(learning_rate=2e-3, average=8.0, clip=1.0),
            LoopPlan(batch=3, depth=0.5, echo=2),
            LoopPlan(optimizer="sgd", learning_rate=0.1, sweep="top-down", weight_decay=0.1),
            LoopPlan(batch=1, learning_rate=1e-4),
            LoopPlan(optimizer="sinkgd", learning_rate=1e-3, depth=0.5),
            LoopPlan(optimizer="muon", learning_rate=1e-3, batch=2, clip=0.5),
        ]
    )
    results = []
    for compile in (False, True):
        lanes = Lanes(small_task, 6, compile=compile)
        lanes.load(range(6), [small_task] * 6, range(6))
        statistics = lanes.run(plan, 50)
        measured = [torch.from_numpy(statistics.sums), torch.from_numpy(statistics.window)]
        results.append([*measured, lanes.state.weights.clone(), lanes.state.average.clone()])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize("name", ["breast-cancer:1", "digits-mlp:0", "digits-conv:0", "grammar:0"])
@pytest.mark.parametrize("compile", [False, True])
def test_what_a_narrow_scope_leaves_out_changes_nothing_to_the_bit(name: str, compile: bool) -> None:
    task, plan = get_task(name), LoopPlan(batch=1, clip=0.5, average=8.0, weight_decay=0.1, learning_rate=1e-2)
    plans = stack_plans([plan, replace(plan, optimizer="sgd"), replace(plan, clip=math.inf, average=0.0)])
    structured = stack_plans([LoopPlan(depth=0.5, keep=0.5, sweep="top-down", order="hard-first", batch=3)])
    results = []
    for neighbour in (stack_plans([plan]), stack_plans([replace(plan, batch=2)]), structured):
        lanes = Lanes(task, 4, compile=compile)
        lanes.load(range(4), [task] * 4, range(4))
        statistics = lanes.run(torch.cat([plans, neighbour], dim=1), 20)
        rows = [row[:3] for row in lanes.state.rows()]
        results.append([*rows, *(torch.from_numpy(own[..., :3]) for own in statistics)])
    assert find_scope(torch.cat([plans, structured], dim=1), lanes.state.scalars) is Scope.WHOLE
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("change", [{}, {"batch": 3, "clip": 0.1}, {"average": 8.0, "optimizer": "muon"},
                                    {"depth": 0.5, "optimizer": "sinkgd"}, {"sweep": "top-down", "keep": 0.5},
                                    {"optimizer": "sgd", "weight_decay": 0.1}])  # fmt: skip
def test_the_plain_loop_is_the_reference_on_other_samples(
    change: dict[str, object], small_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlainLoop, "_next_microbatch", ReferenceLoop._next_microbatch)
    plain, reference = PlainLoop(small_task, 3, dtype=EXACT), ReferenceLoop(small_task, 3, dtype=EXACT)
    plan = replace(LoopPlan(learning_rate=3e-3, batch=1), **change)  # type: ignore[arg-type]
    for _ in range(3):
        ours, theirs = plain.run(plan, 17), reference.run(plan, 17)
        np.testing.assert_allclose(ours.sums, theirs.sums, rtol=1e-6)
        np.testing.assert_allclose(ours.window, theirs.window, rtol=1e-4, atol=1e-7)
    for a, b in zip(plain.parameters, reference.parameters, strict=True):
        torch.testing.assert_close(a, b)
    assert plain.evaluate(small_task.target) == pytest.approx(reference.evaluate(small_task.target), rel=1e-6)
    assert plain.look(small_task.target) == pytest.approx(plain.evaluate(small_task.target)[0])


probe_kinds = pytest.mark.parametrize(
    "kind", [Probe, pytest.param(CompiledProbe, marks=pytest.mark.skipif(find_c_compiler() is None, reason="needs C"))]
)
_Kind = type[Probe] | type[CompiledProbe]


@probe_kinds
def test_products_are_those_of_the_last_updates(kind: _Kind) -> None:
    shapes, generator = ((7, 3), (5,)), torch.Generator().manual_seed(0)
    updates = [[[torch.randn(s, generator=generator) for s in shapes] for _ in range(3)] for _ in range(WINDOW + 2)]
    probe = kind([torch.zeros(s) for s in shapes])
    for update in updates:
        probe.measure(*update)
    found = probe.read()[:, :, 0]
    flat = [[torch.cat([t.flatten() for t in vector]) for vector in update] for update in updates]
    for at, ((_, _, weights), (gradient, momentum, moved)) in enumerate(pairwise(flat[1:])):
        before = flat[at + 1][0]
        vectors = {"G": gradient, "M": momentum, "W": moved, "P": before, "S": moved - weights}
        wanted = [1.0, float(at > 0)]
        wanted += [float(vectors[p[0]] @ vectors[p[1]]) if at or not set(p) & set("PS") else 0.0 for p in PROBE[2:]]
        np.testing.assert_allclose(found[at], wanted, rtol=1e-5, atol=1e-5)
    assert len(found) == WINDOW


@probe_kinds
def test_of_a_large_model_some_rows_stand_for_all(kind: _Kind) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((300, 200), (300,), (50, 300))
    probes = [kind([torch.zeros(s) for s in shapes], most) for most in (None, 4000)]

    def draw(mean: float) -> list[torch.Tensor]:
        return [torch.randn(s, generator=generator) + mean for s in shapes]

    for _ in range(3):
        update = [draw(mean) for mean in (0.3, -0.2, 1.0)]
        for probe in probes:
            probe.measure(*update)
    whole, some = (probe.read() for probe in probes)
    lengths = np.sqrt(whole[2, 2, 0] * whole[2, 6, 0])
    np.testing.assert_allclose(some[:, :2], whole[:, :2])
    np.testing.assert_allclose(some[2, 2:5, 0], whole[2, 2:5, 0], rtol=0.1)
    np.testing.assert_allclose(some[2, 8, 0] / lengths, whole[2, 8, 0] / lengths, atol=0.05)


@probe_kinds
def test_statistics_keep_memory_within_a_window_alone(kind: _Kind) -> None:
    def measure() -> None:
        probe.measure(*([torch.randn(40, 10)] for _ in range(3)))

    def find_bytes() -> int:
        held = probe._rows if isinstance(probe, Probe) else probe._kept
        return held.untyped_storage().nbytes()

    probe = kind([torch.zeros(40, 10)])
    vectors = WINDOW * 4 + 1 if kind is Probe else 6
    for _ in range(2):
        probe.begin()
        assert find_bytes() == 0
        again = kind([torch.zeros(40, 10)])
        again.load_state_dict(probe.state_dict())
        assert len(again.read()) == 0
        measure()
        again.load_state_dict(probe.state_dict())
        assert find_bytes() == vectors * 400 * 4
        torch.manual_seed(0)
        measure()
        torch.manual_seed(0)
        probe, other = again, probe
        measure()
        np.testing.assert_array_equal(probe.read(), other.read())


@pytest.mark.skipif(find_c_compiler() is None, reason="needs a C compiler")
def test_both_kinds_of_probe_find_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes, dtypes = ((300, 203), (300,), (50, 3, 3, 3), ()), (torch.float32, torch.float16)
    for most, dtype in ((None, dtypes[0]), (4000, dtypes[0]), (None, dtypes[1])):
        probes = [kind([torch.zeros(s) for s in shapes], most) for kind in (Probe, CompiledProbe)]
        for _ in range(WINDOW + 3):
            update = [[torch.randn(s, generator=generator) for s in shapes] for _ in range(3)]
            update[0] = [g.to(dtype) for g in update[0]]
            update[2][2] = update[2][2].to(memory_format=torch.channels_last)
            for probe in probes:
                probe.measure(*update)
        scale = np.abs(probes[0].read()).max()
        np.testing.assert_allclose(probes[1].read() / scale, probes[0].read() / scale, atol=1e-5)
        for probe, other in zip(probes, reversed(probes), strict=True):
            probe.load_state_dict(other.state_dict())  # of the other kind: the window is begun anew
            assert len(probe.read()) == 0
    assert isinstance(make_probe([torch.zeros(3)]), CompiledProbe)
    assert isinstance(make_probe([torch.zeros(3), torch.zeros(3, dtype=torch.float64)]), Probe)


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
        index = draw_candidates(key, torch.tensor([tick]), 16, len(small_task.train))[0][0]
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
    found = loop.run(LoopPlan(optimizer="sgd", learning_rate=1.0, momentum=0.0, clip=0.01, batch=1), 1)
    assert (flat(loop, "parameters") - before).norm().item() == pytest.approx(0.01, rel=1e-3)
    assert summarise(found, 0.01, One())["clipped_fraction"] == 1


def test_batch_updates_only_when_full(small_task: Task) -> None:
    lanes = Lanes(small_task, 1)
    lanes.load([0], [small_task], [0])
    before = lanes.state.weights.clone()
    found = lanes.run(stack_plans([LoopPlan(batch=4)]), 3)
    assert torch.equal(before, lanes.state.weights)
    assert found.total("updates").item() == 0
    assert lanes.run(stack_plans([LoopPlan(batch=4)]), 1).total("updates").item() == 1
    assert not torch.equal(before, lanes.state.weights)


def test_streams_are_uniform_and_apart() -> None:
    key = make_key(torch.arange(200))
    drawn = [torch.cat(draw_candidates(key, torch.full((200,), t), 16, 100), dim=1) for t in range(50)]
    index = torch.cat(drawn, dim=1)
    counts = torch.bincount(index.flatten(), minlength=100).double()
    expected = index.numel() / 100
    assert index.min() >= 0
    assert index.max() <= 99
    assert ((counts - expected) ** 2 / expected).sum() < 150  # chi-square, 99 degrees of freedom: p = 7e-4
    assert not torch.equal(index[0], index[1])
    control = draw_control_samples(key, torch.zeros(200, dtype=torch.int64), 16, 100)
    assert (control == index[:, :16]).double().mean() < 0.03


def test_plans_survive_stacking() -> None:
    plan = LoopPlan("sgd", 0.125, 0.5, 0.75, 0.25, math.inf, 4, 32.0, 0.5, 0.25, "hard-first", 2, "top-down", True)
    assert unstack_plans(stack_plans([plan, LoopPlan()])) == [plan, unstack_plans(stack_plans([LoopPlan()]))[0]]


@pytest.mark.parametrize(
    ("field", "value"),
    [("optimizer", "lion"), ("learning_rate", -1), ("learning_rate", math.nan), ("momentum", 1.0), ("clip", 0.0),
     ("batch", 0), ("batch", 1.5), ("average", -1.0), ("weight_decay", math.inf), ("depth", 0.0), ("depth", 1.5),
     ("keep", 0.0), ("order", "random"), ("echo", 0), ("sweep", "sideways"), ("rollback", "yes"),
     ("momentum", 0.99999999), ("second_momentum", 0.99999999)],
)  # fmt: skip
def test_a_bad_plan_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(LoopwrightError, match=field):
        LoopPlan(**{field: value})  # type: ignore[arg-type]


def test_bad_lanes_are_refused(small_task: Task) -> None:
    with pytest.raises(LoopwrightError, match="lanes must be 1 or more, got 0"):
        Lanes(small_task, 0)
    lanes = Lanes(small_task, 1)
    with pytest.raises(LoopwrightError, match="shape"):
        lanes.load([0], [get_task("mixtures:2")], [0])
