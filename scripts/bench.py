"""Measure the engine, whether its costs are true, and what its guard is worth.

    loopwright bench                # inner steps per second of Lanes, and of what it could be compared with
    loopwright bench --what cost    # predicted geq against the time ReferenceLoop takes, under depth and keep
    loopwright bench --what guard   # a thousand wild runs, with the guard and without

All figures come from one run; only their ratios travel between machines. engine: an MLP 64-32-32-10, microbatches of
16. The plain loop does the same work as a lane, telemetry included, with torch.optim.AdamW; the limit is nothing but
the matrix products of one step, batched over the lanes. cost: an MLP of 4 hidden layers of 1024, batch 256, in one
thread, where arithmetic dominates. guard: learning rates log-uniform in [1e-6, 1e3], then random actions on all knobs.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from loopwright.envs.episodes import DIVERGED, EpisodeBatch, EpisodeSettings
from loopwright.envs.guard import FINE
from loopwright.envs.knobs import KnobSet
from loopwright.envs.lanes import Lanes, compiler_available
from loopwright.envs.ledger import Author
from loopwright.envs.plan import OPTIMIZERS, LoopPlan, stack_plans
from loopwright.envs.randomness import candidate_indices, make_key
from loopwright.envs.reference import ReferenceLoop
from loopwright.envs.telemetry import SUMS
from loopwright.envs.threads import compute_threads
from loopwright.inner_tasks import MLP, Split
from loopwright.inner_tasks.errors import LoopwrightError
from loopwright.inner_tasks.task import Task, get_task
from loopwright.scripts.run import run

TASK, MICROBATCH = "mixtures:2", 16
NAMES = {
    "lanes_compiled": "Lanes, compiled",
    "lanes_eager": "Lanes, eager",
    "plain_loop": "plain PyTorch loop, with telemetry",
    "reference_loop": "ReferenceLoop",
    "matmul_limit": "batched matmul alone",
}


@dataclass
class Config:
    what: Literal["engine", "cost", "guard"] = "engine"
    """What to measure."""
    lanes: int = 256
    """Runs side by side (engine); guard always takes 1000."""
    seconds: float = 4.0
    """How long to time each, in all; the best of five stretches counts (engine and cost)."""
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


def large_task() -> Task:
    """Random data for a network on which arithmetic dominates: 4 hidden layers of 1024, microbatches of 256."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 1024, generator=generator)
    split = Split(inputs, torch.randint(10, (256,), generator=generator))
    return Task("large", MLP(1024, (1024,) * 4, 10), split, split, split)


def measure_costs(seconds: float) -> list[dict[str, float | str]]:
    """For each plan: its cost as a ratio to the full plan's, as predicted in geq and as measured in time.

    Plans take turns, so that a change in the speed of the machine meets all of them. One thread: small products, those
    of an eighth of the microbatch, do not make good use of more.
    """
    blocks = 5
    plans = {"full": LoopPlan()} | {f"depth {b} of {blocks}": LoopPlan(depth=b / blocks) for b in (4, 3, 2, 1)}
    plans |= {f"keep {share}": LoopPlan(keep=share) for share in (0.5, 0.25, 0.125)}
    loops = {name: ReferenceLoop(large_task(), 0, microbatch=256) for name in plans}
    # An update passes over all parameters a dozen times, whatever the batch: one in 32 microbatches leaves arithmetic.
    plans = {name: replace(plan, batch=32) for name, plan in plans.items()}
    predicted = {name: loops[name].run(plan, 1)[SUMS.index("cost")].item() for name, plan in plans.items()}
    times: dict[str, list[float]] = {name: [] for name in plans}
    with compute_threads(1):
        end = time.perf_counter() + seconds * len(plans)
        while time.perf_counter() < end or len(times["full"]) < 3:
            for name, plan in plans.items():
                start = time.perf_counter()
                loops[name].run(plan, 4)
                times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(found) for name, found in times.items()}
    rows: list[dict[str, float | str]] = []
    for name in plans:
        geq, measured = predicted[name] / predicted["full"], median[name] / median["full"]
        rows.append({"plan": name, "predicted": geq, "measured": measured, "measured_over_predicted": measured / geq})
    return rows


def wild_runs(guard: int, ledgers: Path | None = None, lanes: int = 1000) -> dict[str, int]:
    """Runs with learning rates log-uniform in [1e-6, 1e3], then random actions on all knobs, for twelve decisions.

    How many were ended by divergence, how many end in ruins (a target loss that is not finite, or ten times what it was
    before training) or with weights that are not finite, and how often the guard acted.
    """
    task = replace(get_task("breast-cancer:1"), model=MLP(30, (32, 32), 2, "relu"))
    rng, knobs = np.random.default_rng(0), KnobSet("all")
    settings = EpisodeSettings(guard=guard)
    batch = EpisodeBatch(task, lanes, settings, rolls_back=True, ledgers=ledgers, author=Author("random actions"))
    starts = [LoopPlan(OPTIMIZERS[i % 2], 10.0 ** rng.uniform(-6, 3)) for i in range(lanes)]
    batch.begin(range(lanes), [task] * lanes, range(lanes), starts)
    before = batch.lanes.evaluate("target")[0]
    running, diverged, interventions = torch.ones(lanes, dtype=torch.bool), 0, 0
    sizes = [len(knob.steps) for knob in knobs.knobs]
    for _ in range(12):
        actions = rng.integers(sizes, size=(lanes, len(sizes)))
        decision = batch.decide(knobs.apply(actions, batch.plans, batch.step_ratio), actions)
        interventions += int(((decision.verdict != FINE) & running).sum())
        diverged += int(((decision.outcome == DIVERGED) & running).sum())
        running &= ~decision.done
    flat = batch.lanes.state.rows()[:6]
    finite = torch.stack([torch.isfinite(tensor).all(1) for tensor in flat]).all(0)
    ruined = ~(batch.lanes.evaluate("target")[0] < 10 * before)
    return {"runs": lanes, "diverged": diverged, "ruined": int(ruined.sum()), "not_finite": int((~finite).sum()),
            "interventions": interventions}  # fmt: skip


def print_rows(title: str, rows: list[dict[str, float | str]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(title=title)
    for heading in rows[0]:
        table.add_column(heading.replace("_", " "))
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


def main(config: Config) -> None:
    if config.lanes < 1 or config.seconds <= 0:
        raise LoopwrightError(f"lanes and seconds must be above 0, got {config.lanes} and {config.seconds}")
    if config.what == "cost":
        print_rows("cost of a plan, as a ratio to the full one", measure_costs(config.seconds), config.json)
        return
    if config.what == "guard":
        guarded: dict[str, float | str] = {"guard": "on", **wild_runs(EpisodeSettings().guard)}
        print_rows("wild runs", [guarded, {"guard": "off", **wild_runs(0)}], config.json)
        return
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
