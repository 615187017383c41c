import math
import random
from collections.abc import Iterator

import numpy as np
import pytest

from loopwright.envs.loop import compiled
from loopwright.envs.loop.arithmetic import One
from loopwright.envs.loop.compiled import Compiled, find_c_compiler, load_c
from loopwright.envs.loop.compiled_observer import CompiledObserver
from loopwright.envs.loop.context import Context
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observer import Observer, Reading
from loopwright.envs.loop.plan import LoopPlan, name_column, stack_plans
from loopwright.envs.loop.telemetry import PROBE, WINDOW, Statistics, Telemetry, summarise
from loopwright.envs.loop.tracing import Traced

needs_compiler = pytest.mark.skipif(find_c_compiler() is None, reason="needs a C compiler")
PRICES = {"sgd": 1.0, "adamw": 2.0, "sinkgd": 3.0, "muon": 40.0}
CONTEXTS = [
    Context(),
    Context(control=False),
    Context(target=0.5, budget=1e4, parameters=3000, samples=900, prices=PRICES),
]


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    load_c.cache_clear()
    monkeypatch.setattr(compiled, "find_c_compiler", lambda: None)
    yield
    load_c.cache_clear()


def draw_statistics(rng: random.Random) -> Statistics:
    updates = rng.randint(0, WINDOW)
    window = np.array([[[rng.gauss(0, 1) ** 2] for _ in PROBE] for _ in range(updates)], np.float32)
    window = window.reshape(updates, len(PROBE), 1) * np.float32(rng.choice([1, 1, 1, 0, 1e20]))
    window[:, 0], window[1:, 1], window[:1, 1], window[:1, PROBE.index("PP") :] = 1.0, 1.0, 0.0, 0.0
    loss = rng.choice([1.0, 0.0, math.nan, math.inf]) if rng.random() < 0.1 else rng.random() * 3
    sums = [16.0, 16.0, 16 * loss, 16 * loss * loss + rng.random(), float(updates)]
    return Statistics(np.array(sums)[:, None], window)


def draw_reading(rng: random.Random, telemetry: Telemetry, plan: dict[str, float], decision: int) -> Reading:
    loss = rng.choice([rng.random(), math.nan, math.inf, 1.0])
    return Reading(
        telemetry, loss, plan, rng.random(), rng.random() < 0.95, rng.random() < 0.1, rng.random(), 100.0 * decision
    )


def follow(observers: list[Observer], context: Context, decisions: int, seed: int) -> None:
    """Both see the same run under the same random plans, and have to see and to do the same in every bit."""
    rng, knobs = random.Random(seed), KnobSet("all")
    plan = name_column(stack_plans([LoopPlan()]), 0)
    for observer in observers:
        observer.begin([0], np.array([2.3]), [context])
        observer.observe(Reading(None, 2.3, plan, 1.0, False, False))
    for decision in range(decisions):
        statistics = draw_statistics(rng)
        found = [summarise(statistics, plan["clip"], each.arithmetic) for each in observers]
        np.testing.assert_array_equal(*([*each.values()] for each in found))
        reading = draw_reading(rng, found[0], plan, decision)
        np.testing.assert_array_equal(*(each.observe(reading) for each in observers))
        if rng.random() < 0.1:
            for each in observers:
                each.tell_control(1.5)
        if rng.random() < 0.1:
            for each in observers:
                each.tell_prices(PRICES)
        if rng.random() < 0.1:
            assert str(observers[0].state_dict()) == str(observers[1].state_dict())
            np.testing.assert_array_equal(*(each.log_loss for each in observers))
        steps = [rng.choice([*knob.steps, rng.gauss(0, 1)]) for knob in knobs.knobs]
        moved = [knobs.move_fields(steps, plan, each.arithmetic) for each in observers]
        assert moved[0] == moved[1]
        plan = moved[0]


@needs_compiler
@pytest.mark.parametrize("context", CONTEXTS)
def test_what_is_compiled_gives_the_same_numbers_bit_for_bit(context: Context) -> None:
    observer = CompiledObserver()
    follow([Observer(), observer], context, 150, seed=0)
    assert observer._function is not None
    assert observer._function.found
    follow([Observer(), observer], context, 20, seed=1)  # another run of the same observer


def test_without_a_compiler_the_numbers_are_the_same(without_compiler: None) -> None:
    observer = CompiledObserver()
    follow([Observer(), observer], CONTEXTS[2], 30, seed=2)
    assert observer._function is not None
    assert not observer._function.found


@needs_compiler
def test_an_observer_goes_on_where_another_kind_has_stopped() -> None:
    rng, plan = random.Random(3), name_column(stack_plans([LoopPlan()]), 0)
    first, second = CompiledObserver(), Observer()
    first.begin([0], np.array([1.0]), [CONTEXTS[2]])
    readings = [draw_reading(rng, summarise(draw_statistics(rng), 1.0, One()), plan, at) for at in range(12)]
    for reading in readings[:6]:
        first.observe(reading)
    second.load_state_dict(first.state_dict())
    again = CompiledObserver()
    again.observe(readings[0])  # it has a memory of its own, which it loses
    again.load_state_dict(second.state_dict())
    for reading in readings[6:]:
        seen = first.observe(reading)
        np.testing.assert_array_equal(second.observe(reading), seen)
        np.testing.assert_array_equal(again.observe(reading), seen)


@needs_compiler
def test_observers_do_not_share_what_they_remember() -> None:
    rng, plan = random.Random(4), name_column(stack_plans([LoopPlan()]), 0)
    alone, one, other = CompiledObserver(), CompiledObserver(), CompiledObserver()
    for each in (alone, one, other):
        each.begin([0], np.array([1.0]), [Context()])
    for at in range(10):
        reading = draw_reading(rng, summarise(draw_statistics(rng), 1.0, One()), plan, at)
        other.observe(draw_reading(rng, summarise(draw_statistics(rng), 1.0, One()), plan, at))
        np.testing.assert_array_equal(alone.observe(reading), one.observe(reading))


@needs_compiler
def test_edges_of_the_functions_are_those_of_floats() -> None:
    def compute(xp: One, numbers: list[float]) -> list[float]:
        a, b = numbers
        return [
            xp.log(a), xp.log2(a), xp.log10(a), xp.exp(a), xp.exp2(a), xp.sqrt(a), xp.rint(a), xp.absolute(a),
            xp.sign(a), xp.divide(a, b), xp.minimum(a, b), xp.maximum(a, b), xp.where(a > b, a, b), -a,
            xp.where(xp.isnan(a) | (a <= b) & xp.negate(xp.isfinite(b)), 1.0, 2.0), 3 - a, a + 3, 2 * b,
            xp.log1p(xp.absolute(a)), 10 ** xp.sign(a),
        ]  # fmt: skip

    compiled, edges = Compiled(), [0.0, -0.0, 1.0, -1.5, 2.5, 0.5, 710.0, 1e308, 5e-324, math.inf, -math.inf, math.nan]
    for a in edges:
        for b in edges:
            wanted = One().evaluate(compute, [a, b])
            np.testing.assert_array_equal(compiled.evaluate(compute, [a, b]), wanted, err_msg=f"{a} {b}")


def test_what_is_traced_cannot_be_branched_on() -> None:
    with pytest.raises(TypeError, match="choose by ``where``"):
        bool(Traced().read("m[0]") > 0)


@needs_compiler
def test_source_that_does_not_compile_is_no_library() -> None:
    with pytest.warns(UserWarning, match=r"is of no use, and Python does what it was to compile: .*error"):
        assert load_c("this is not C") is None
