"""What ``loopwright bench`` measures: the engine's speed, whether its costs are true, its guard, and importing it."""

import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.nn import functional as F

from loopwright.envs.engine.fusing import has_compiler
from loopwright.envs.engine.lanes import Lanes
from loopwright.envs.engine.randomness import draw_candidates, make_key
from loopwright.envs.engine.reference import ReferenceLoop
from loopwright.envs.engine.threads import limit_threads
from loopwright.envs.episode.batch import EpisodeBatch
from loopwright.envs.episode.decision import DIVERGED
from loopwright.envs.episode.recorder import Recorder
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.episode.start import Start
from loopwright.envs.loop.guard import FINE
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.ledger import Author
from loopwright.envs.loop.plan import OPTIMIZERS, LoopPlan, stack_plans
from loopwright.inner_tasks import MLP, Split, Task, get_task
from loopwright.scripts.jax_bench import JAX_TICKS, make_jax_steps

TASK, MICROBATCH = "mixtures:2", 16
DECISION = 16  # ticks
IMPORTED = ("gymnasium", "torch", "loopwright", "loopwright.envs.training_loop")


def measure_rate(step: Callable[[], None], steps_per_call: int, seconds: float) -> float:
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


def make_lanes_step(task: Task, lanes: int, compile: bool) -> Callable[[], None]:
    batch = Lanes(task, lanes, microbatch=MICROBATCH, compile=compile)
    batch.load(range(lanes), [task] * lanes, range(lanes))
    plans = stack_plans([LoopPlan(batch=1)] * lanes)
    return lambda: forget(batch.run(plans, DECISION))


def forget(_: object) -> None:
    return None


def make_plain_step(task: Task) -> Callable[[], None]:
    """What a user would write: AdamW from torch.optim, and the statistics of one tick read off the gradients."""
    model = task.model.build()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    key, size = make_key(torch.tensor([0])), len(task.train)
    previous = torch.zeros(sum(p.numel() for p in parameters))
    tick = 0

    def step() -> None:
        nonlocal previous, tick
        index = draw_candidates(key, torch.tensor([tick]), MICROBATCH, size)[0][0]
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


def make_matmul_step(lanes: int) -> Callable[[], None]:
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


def measure_engine(lanes: int, seconds: float) -> dict[str, float]:
    """Inner steps per second of each contestant."""
    task = get_task(TASK)
    reference = ReferenceLoop(task, 0, microbatch=MICROBATCH)
    found = {}
    if has_compiler():
        found["lanes_compiled"] = measure_rate(make_lanes_step(task, lanes, True), DECISION * lanes, seconds)
    found["lanes_eager"] = measure_rate(make_lanes_step(task, lanes, False), DECISION * lanes, seconds)
    with torch.no_grad():
        found["matmul_limit"] = measure_rate(make_matmul_step(lanes), lanes, seconds)
    if find_spec("jax") is not None:
        for rule, step in make_jax_steps(task, lanes, MICROBATCH).items():
            found[f"jax_{rule}"] = measure_rate(step, JAX_TICKS * lanes, seconds)
    found["plain_loop"] = measure_rate(make_plain_step(task), 1, seconds)
    found["reference_loop"] = measure_rate(lambda: forget(reference.run(LoopPlan(batch=1), 1)), 1, seconds)
    return found


def make_large_task() -> Task:
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
    loops = {name: ReferenceLoop(make_large_task(), 0, microbatch=256) for name in plans}
    # An update passes over all parameters a dozen times, whatever the batch: one in 32 microbatches leaves arithmetic.
    plans = {name: replace(plan, batch=32) for name, plan in plans.items()}
    predicted = {name: loops[name].run(plan, 1).total("cost").item() for name, plan in plans.items()}
    times: dict[str, list[float]] = {name: [] for name in plans}
    with limit_threads(1):
        end = time.perf_counter() + seconds * len(plans)
        while time.perf_counter() < end or len(times["full"]) < 3:
            for name, plan in plans.items():
                start = time.perf_counter()
                loops[name].run(plan, 4)
                times[name].append(time.perf_counter() - start)
    typical = {name: median(found) for name, found in times.items()}
    rows: list[dict[str, float | str]] = []
    for name in plans:
        geq, measured = predicted[name] / predicted["full"], typical[name] / typical["full"]
        rows.append({"plan": name, "predicted": geq, "measured": measured, "measured_over_predicted": measured / geq})
    return rows


WILD_LANES = 1000  # wild runs side by side


def run_wild(guard: int, runs: int = 1000, ledgers: Path | None = None) -> dict[str, int]:
    """Runs with learning rates log-uniform in [1e-6, 1e3], then random actions on all knobs, for twelve decisions.

    How many were ended by divergence; how many end in ruins (a target loss that is not finite, or ten times what it was
    before training) or with weights that are not finite; how many are lost, given up with such weights; and how often
    the guard acted. A run counts as it stands when it ends. ``runs`` is a multiple of 1000.
    """
    total: Counter[str] = Counter(runs=0)
    for seed in range(runs // WILD_LANES):
        total.update(_run_wild(guard, seed, ledgers))
    return dict(total)


def _run_wild(guard: int, seed: int, ledgers: Path | None) -> dict[str, int]:
    task = replace(get_task("breast-cancer:1"), model=MLP(30, (32, 32), 2, "relu"))
    rng, knobs, lanes = np.random.default_rng(seed), KnobSet("all"), WILD_LANES
    recorder = Recorder(ledgers, Author("random actions")) if ledgers else None
    batch = EpisodeBatch(task, lanes, EpisodeSettings(guard=guard), rolls_back=True, recorder=recorder)
    plans = [LoopPlan(OPTIMIZERS[i % len(OPTIMIZERS)], 10.0 ** rng.uniform(-6, 3)) for i in range(lanes)]
    batch.begin(range(lanes), [Start(task, seed * lanes + lane, plan) for lane, plan in enumerate(plans)])
    before = batch.lanes.evaluate("target")[0]
    running, diverged, ruined, ill = (torch.full((lanes,), begun) for begun in (True, False, False, False))
    interventions = 0
    for _ in range(12):
        actions = rng.integers(knobs.choices, size=(lanes, len(knobs.choices)))
        decision = batch.decide(knobs.apply(actions, batch.plans, batch.step_ratio), actions)
        interventions += int(((decision.verdict != FINE) & running).sum())
        diverged |= (decision.outcome == DIVERGED) & running
        ruined = torch.where(running, ~(decision.loss < 10 * before), ruined)
        finite = torch.stack([torch.isfinite(tensor).all(1) for tensor in batch.lanes.state.rows()[:5]]).all(0)
        ill = torch.where(running, ~finite, ill)
        running &= ~decision.done
    counted = {"diverged": diverged, "ruined": ruined, "not_finite": ill, "lost": diverged & ill}
    return {"runs": lanes, **{name: int(found.sum()) for name, found in counted.items()},
            "interventions": interventions}  # fmt: skip


def measure_imports(rounds: int = 5) -> list[dict[str, float | str]]:
    """Seconds that importing takes, each in a process of its own; the fastest of so many rounds."""
    rows: list[dict[str, float | str]] = []
    for module in IMPORTED:
        code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
        command = [sys.executable, "-c", code]
        found = [
            float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(rounds)
        ]
        rows.append({"import": module, "seconds": min(found)})
    return rows
