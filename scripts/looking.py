"""What ``loopwright bench --what looking`` measures: a controller's own work, beside the plain loop it steers."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from loopwright.agents.controllers.policy import Policy, build_network
from loopwright.envs.engine.plain import PlainLoop
from loopwright.envs.engine.threads import limit_threads
from loopwright.envs.loop.averages import Floats
from loopwright.envs.loop.context import Context
from loopwright.envs.loop.guard import SNAPSHOT_EVERY
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import OBSERVATION_NAMES
from loopwright.envs.loop.observer import Observer, Reading
from loopwright.envs.loop.plan import LoopPlan, name_column, stack_plans
from loopwright.envs.loop.telemetry import summarise
from loopwright.inner_tasks import MLP, Split, Task, get_task

PLAN = LoopPlan(batch=1, clip=1.0, average=8.0)
UPDATES = 16


def measure_looking(seconds: float) -> list[dict[str, float | str]]:
    """Microseconds of a decision in a plain loop, and of each part of a controller's work in % of them."""
    with limit_threads(1):
        return [_measure(task, batch, seconds) for task, batch in ((get_task("mixtures:2"), 16), (_make_large(), 64))]


def _make_large() -> Task:
    """Random data for an MLP 784-784-512-10: a million parameters."""
    generator = torch.Generator().manual_seed(0)
    split = Split(torch.randn(2048, 784, generator=generator), torch.randint(10, (2048,), generator=generator))
    return Task("large", MLP(784, (784, 512), 10), split, split, split)


def _measure(task: Task, microbatch: int, seconds: float) -> dict[str, float | str]:
    bare, watched = (PlainLoop(task, 0, microbatch=microbatch, telemetry=telemetry) for telemetry in (False, True))
    parameters = sum(p.numel() for p in bare.parameters)
    observer, knobs = Observer(), KnobSet("core")
    observer.begin([0], np.ones(1), [Context(target=0.5, budget=1e4, parameters=parameters, samples=1000)])
    network = build_network([len(OBSERVATION_NAMES), 128, 128, sum(knobs.choices)], "tanh")
    policy, plan = Policy(network, knobs, PLAN), name_column(stack_plans([PLAN]), 0)
    control = Split(task.control.inputs[:16], task.control.labels[:16])
    kept = watched.snapshot()
    taken: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        taken.setdefault(name, []).append(time.perf_counter() - start)
        return result

    def look_back() -> Floats:
        telemetry = summarise(statistics, PLAN.clip, observer.arithmetic)
        return observer.observe(Reading(telemetry, loss, plan, 0.5, True, False, samples_read=1000.0))

    def decide() -> dict[str, float]:
        return knobs.move_fields(policy.steps(seen)[0].tolist(), plan, observer.arithmetic)

    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken["decision"]) < 10:
        timed("decision", lambda: bare.run(PLAN, UPDATES))
        statistics = timed("watched", lambda: watched.run(PLAN, UPDATES))
        loss, _ = timed("look", lambda: watched.evaluate(control))
        seen = timed("observation", look_back)
        timed("policy", decide)
        kept = timed("snapshot", partial(watched.snapshot, kept))
    middle = {name: median(own) for name, own in taken.items()}
    work = {
        "statistics": median(b - a for a, b in zip(taken["decision"], taken["watched"], strict=True)),
        "observation": middle["observation"],
        "policy": middle["policy"],
        "snapshot": middle["snapshot"] / SNAPSHOT_EVERY,
    }
    shares = {name: 100 * own / middle["decision"] for name, own in work.items()}
    return {
        "parameters": str(parameters), "batch": str(microbatch), "decision_us": 1e6 * middle["decision"], **shares,
        "together": sum(shares.values()), "look": 100 * middle["look"] / middle["decision"],
    }  # fmt: skip
