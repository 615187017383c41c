"""What ``loopwright bench --what looking`` measures: a controller's own work, beside the plain loop it steers."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from loopwright.agents.controllers.policy import Policy, build_network
from loopwright.agents.steering.attach import attach
from loopwright.agents.steering.pace import count_decisions
from loopwright.agents.steering.steering import Steering
from loopwright.envs.engine.plain import PlainLoop
from loopwright.envs.engine.threads import limit_threads
from loopwright.envs.loop.averages import Floats
from loopwright.envs.loop.compiled_observer import CompiledObserver
from loopwright.envs.loop.context import Context
from loopwright.envs.loop.guard import SNAPSHOT_EVERY
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import OBSERVATION_NAMES
from loopwright.envs.loop.observer import Reading
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
    observer, knobs = CompiledObserver(), KnobSet("core")
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
        return knobs.move_fields(policy.steps_of_one(seen), plan, observer.arithmetic)

    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken["decision"]) < 10:
        timed("decision", lambda: bare.run(PLAN, UPDATES))
        statistics = timed("watched", lambda: watched.run(PLAN, UPDATES))
        loss = timed("look", lambda: watched.look(control))
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


def measure_attached(seconds: float) -> list[dict[str, float | str]]:
    """What ``attach`` adds to an ordinary loop, in % of its time, and what it keeps, in copies of the gradient.

    At first, between decisions, and over ``LONG_RUN`` iterations, in which decisions come to lie further apart.
    """
    with limit_threads(1):
        return [
            _measure_attached(sizes, batch, seconds) for sizes, batch in (((64, 32, 32, 10), 16), (_TEN_MILLION, 64))
        ]


LONG_RUN, NEVER = 5000, 10**9  # iterations
LEAST_ROUNDS = 5
_TEN_MILLION = (1024, 2048, 2048, 1792, 10)


class _OwnLoop:
    """A loop that a user would write, with a policy attached that leaves the plan alone, or without.

    ``every`` is how many iterations lie between its decisions; None: without a policy.
    """

    def __init__(self, sizes: Sequence[int], batch: int, every: int | None) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
            self.inputs, self.labels = torch.randn(batch, sizes[0]), torch.randint(sizes[-1], (batch,))
        self.model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.steering: Steering | None = None
        self.every = every
        if every is not None:
            self.attach()

    def attach(self) -> None:
        """Anew, where a policy is attached already: its decisions then lie as near as at first."""
        if self.steering is not None:
            self.steering.detach()
        self.steering = attach(self.optimizer, _make_still_policy(), prices=None, every=self.every, warmup=0)

    def run(self) -> None:
        for _ in range(UPDATES):
            loss = nn.functional.cross_entropy(self.model(self.inputs), self.labels)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.steering is not None:
                self.steering.step(loss)

    def time_runs(self, runs: int) -> float:
        """Seconds of a run, of so many in a row: what it leaves in the caches, the next one finds there."""
        self.run()
        start = time.perf_counter()
        for _ in range(runs):
            self.run()
        return (time.perf_counter() - start) / runs


def _make_still_policy() -> Policy:
    knobs = KnobSet("core")
    network = build_network([len(OBSERVATION_NAMES), 128, 128, sum(knobs.choices)], "tanh")
    last = network[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.zero_()
        starts = np.cumsum([0, *knobs.choices[:-1]])
        last.bias[[int(start) + knob.still for start, knob in zip(starts, knobs.knobs, strict=True)]] = 50.0
    return Policy(network, knobs, PLAN)


def _measure_attached(sizes: Sequence[int], batch: int, seconds: float) -> dict[str, float | str]:
    loops = bare, _, attached = tuple(_OwnLoop(sizes, batch, every) for every in (None, NEVER, UPDATES))
    taken: list[list[float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < LEAST_ROUNDS:
        attached.attach()
        taken.append([loop.time_runs(SNAPSHOT_EVERY) for loop in loops])
    parameters = sum(p.numel() for p in bare.model.parameters())
    assert attached.steering is not None
    state = attached.steering.state_dict()
    decision = median(own[0] for own in taken)
    idle, share = (100 * median(own[at] - own[0] for own in taken) / decision for at in (1, 2))
    decided = count_decisions(UPDATES, LONG_RUN) * UPDATES / LONG_RUN  # of as many decisions as at first
    return {
        "parameters": str(parameters), "batch": str(batch), "decision_us": 1e6 * decision,
        "attached": share, "between": idle, f"over_{LONG_RUN}": idle + (share - idle) * decided,
        "statistics_copies": _count_numbers(state["probe"]) / parameters,
        "snapshot_copies": _count_numbers(state["guard"]["snapshots"]) / parameters,
    }  # fmt: skip


def _count_numbers(found: Any) -> int:
    """How many numbers the tensors have that are anywhere in nested containers."""
    if isinstance(found, torch.Tensor):
        return found.numel()
    inside = found.values() if isinstance(found, dict) else found if isinstance(found, list | tuple) else ()
    return sum(_count_numbers(own) for own in inside)
