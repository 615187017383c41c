"""Measure the engine: inner steps per second of Lanes against a plain PyTorch loop and the batched-matmul limit.

All figures come from one run, on an MLP 64-32-32-10 with microbatches of 16; only their ratios travel between machines.
The plain loop does the same work as a lane, telemetry included, with torch.optim.AdamW; the limit is nothing but the
matrix products of one step, batched over the lanes.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from loopwright.envs.lanes import Lanes, compiler_available
from loopwright.envs.plan import LoopPlan, stack_plans
from loopwright.envs.randomness import candidate_indices, make_key
from loopwright.envs.reference import ReferenceLoop
from loopwright.inner_tasks.errors import LoopwrightError
from loopwright.inner_tasks.task import Task, get_task
from loopwright.scripts.run import run

TASK, MICROBATCH = "mixtures:0", 16
NAMES = {
    "lanes_compiled": "Lanes, compiled",
    "lanes_eager": "Lanes, eager",
    "plain_loop": "plain PyTorch loop, with telemetry",
    "reference_loop": "ReferenceLoop",
    "matmul_limit": "batched matmul alone",
}


@dataclass
class Config:
    lanes: int = 256
    """Runs side by side."""
    seconds: float = 4.0
    """How long to time each, in all; the best of five stretches counts."""
    json: bool = False
    """Print JSON instead of a table."""


def rate(step: Callable[[], None], steps_per_call: int, seconds: float) -> float:
    """Steps per second: the fastest of five stretches after a warm-up, which other processes disturb least."""
    step()
    step()
    best = 0.0
    for _ in range(5):
        calls, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds / 5:
            step()
            calls += 1
        best = max(best, calls * steps_per_call / elapsed)
    return best


def lanes_step(task: Task, lanes: int, compile: bool) -> Callable[[], None]:
    batch = Lanes(task, lanes, microbatch=MICROBATCH, compile=compile)
    batch.load(range(lanes), [task] * lanes, range(lanes))
    plans = stack_plans([LoopPlan(batch=1)] * lanes)
    return lambda: void(batch.run(plans, 4))


def void(_: object) -> None:
    return None


def plain_step(task: Task) -> Callable[[], None]:
    """What a user would write: AdamW from torch.optim, and the statistics of one tick read off the gradients."""
    model = task.model.build()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    key, size = make_key(torch.tensor([0])), len(task.train)
    previous = torch.zeros(sum(p.numel() for p in parameters))
    tick = 0

    def step() -> None:
        nonlocal previous, tick
        index = candidate_indices(key, torch.tensor([tick]), MICROBATCH, size)[0][0]
        tick += 1
        optimizer.zero_grad()
        loss = F.cross_entropy(model(task.train.inputs[index]), task.train.labels[index])
        loss.backward()  # type: ignore[no-untyped-call]
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        momentum = torch.cat(
            [optimizer.state[p]["exp_avg"].flatten() for p in parameters if p in optimizer.state] or [previous]
        )
        torch.nn.utils.clip_grad_norm_(parameters, math.inf)
        before = torch.cat([p.detach().flatten() for p in parameters])
        optimizer.step()
        after = torch.cat([p.detach().flatten() for p in parameters])
        torch.stack([loss.detach(), gradient.norm(), gradient @ previous, gradient @ momentum, momentum.norm(),
                     (after - before).norm(), after.norm()]).tolist()  # fmt: skip
        previous = gradient

    return step


def matmul_step(lanes: int) -> Callable[[], None]:
    """The eight products of one step at this shape; a first layer needs no gradient of its input."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(lanes, *shape)

    x, hidden, output = draw(MICROBATCH, 64), draw(MICROBATCH, 32), draw(MICROBATCH, 10)
    first, second, third = draw(32, 64), draw(32, 32), draw(10, 32)
    into_hidden, into_output = torch.empty_like(hidden), torch.empty_like(output)
    into_first, into_second, into_third = torch.empty_like(first), torch.empty_like(second), torch.empty_like(third)

    def step() -> None:
        torch.bmm(x, first.mT, out=into_hidden)
        torch.bmm(hidden, second.mT, out=into_hidden)
        torch.bmm(hidden, third.mT, out=into_output)
        torch.bmm(output.mT, hidden, out=into_third)
        torch.bmm(output, third, out=into_hidden)
        torch.bmm(hidden.mT, hidden, out=into_second)
        torch.bmm(hidden, second, out=into_hidden)
        torch.bmm(hidden.mT, x, out=into_first)

    return step


def measure(config: Config) -> dict[str, float]:
    """Inner steps per second of each contestant."""
    task, lanes, seconds = get_task(TASK), config.lanes, config.seconds
    reference = ReferenceLoop(task, 0, microbatch=MICROBATCH)
    found = {}
    if compiler_available():
        found["lanes_compiled"] = rate(lanes_step(task, lanes, True), 4 * lanes, seconds)
    found["lanes_eager"] = rate(lanes_step(task, lanes, False), 4 * lanes, seconds)
    with torch.no_grad():
        found["matmul_limit"] = rate(matmul_step(lanes), lanes, seconds)
    found["plain_loop"] = rate(plain_step(task), 1, seconds)
    found["reference_loop"] = rate(lambda: void(reference.run(LoopPlan(batch=1), 1)), 1, seconds)
    return found


def main(config: Config) -> None:
    if config.lanes < 1 or config.seconds <= 0:
        raise LoopwrightError(f"lanes and seconds must be above 0, got {config.lanes} and {config.seconds}")
    found = measure(config)
    if config.json:
        ratios = {"compiled_over_plain": found.get("lanes_compiled", 0) / found["plain_loop"],
                  "compiled_over_limit": found.get("lanes_compiled", 0) / found["matmul_limit"]}  # fmt: skip
        print(
            json.dumps({"lanes": config.lanes, "threads": torch.get_num_threads(), "steps_per_second": found, **ratios})
        )
        return
    table = Table(title=f"inner steps per second, {config.lanes} lanes, {torch.get_num_threads()} threads")
    for heading in ("", "steps/s", "x plain loop", "of the limit"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, what in NAMES.items():
        if name in found:
            value = found[name]
            table.add_row(
                what, f"{value:,.0f}", f"{value / found['plain_loop']:.1f}", f"{value / found['matmul_limit']:.0%}"
            )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
