"""Measure the engine, whether its costs are true, and what its guard is worth.

    loopwright bench                # inner steps per second of Lanes, and of what it could be compared with
    loopwright bench --what cost    # predicted geq against the time ReferenceLoop takes, under depth and keep
    loopwright bench --what guard   # ten thousand wild runs, with the guard and without
    loopwright bench --what looking # what a controller's own work adds to a plain loop
    loopwright bench --what clients # decisions per second of the environments, and what a picture takes
    loopwright bench --what import  # how long importing the package takes, and what it is made of

All figures come from one run; only their ratios travel between machines. engine: an MLP 64-32-32-10, microbatches of
16. The plain loop does the same work as a lane, telemetry included, with torch.optim.AdamW; the limit is nothing but
the matrix products of one step, batched over the lanes; JAX is there if it is installed (the extra "bench"). cost: an
MLP of 4 hidden layers of 1024, batch 256, in one thread, where arithmetic dominates. guard: learning rates log-uniform
in [1e-6, 1e3], then random actions on all knobs. looking: decisions of 16 updates by fused AdamW with clipping and
averaged weights, on that MLP and on one of a million parameters at batch 64, in one thread; the look at the control
split stands apart, as it does in the cost; then a policy attached to a loop of one's own (AdamW, that MLP and one of
ten million parameters), which leaves the plan alone.
"""

import json
import sys
from dataclasses import dataclass
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.scripts.benchmarks import measure_costs, measure_engine, measure_imports, run_wild
from loopwright.scripts.clients import measure_clients
from loopwright.scripts.looking import measure_attached, measure_looking
from loopwright.scripts.run import run

NAMES = {
    "lanes_compiled": "Lanes, compiled",
    "lanes_eager": "Lanes, eager",
    "jax_sgd": "JAX, vmap and scan, SGD without telemetry",
    "jax_adamw": "JAX, vmap and scan, AdamW without telemetry",
    "plain_loop": "plain PyTorch loop, with telemetry",
    "reference_loop": "ReferenceLoop",
    "matmul_limit": "batched matmul alone",
}


@dataclass
class Config:
    what: Literal["engine", "cost", "guard", "looking", "clients", "import"] = "engine"
    """What to measure."""
    lanes: int = 256
    """Runs side by side (engine); guard always takes 1000, ten times."""
    seconds: float = 4.0
    """How long to time each, in all; the best of five stretches counts (engine and cost)."""
    json: bool = False
    """Print JSON instead of a table."""


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
    if config.what == "cost":
        print_rows("cost of a plan, as a ratio to the full one", measure_costs(config.seconds), config.json)
        return
    if config.what == "guard":
        guarded: dict[str, float | str] = {"guard": "on", **run_wild(EpisodeSettings().guard, 10_000)}
        print_rows("wild runs", [guarded, {"guard": "off", **run_wild(0, 10_000)}], config.json)
        return
    if config.what == "looking":
        found = {"looking": measure_looking(config.seconds), "attached": measure_attached(config.seconds)}
        if config.json:
            print(json.dumps(found))
            return
        print_rows("what looking adds to a plain loop, in % of its time", found["looking"], False)
        print_rows("what attaching adds to a loop of one's own, in % of its time; copies of the gradient that it keeps",
                   found["attached"], False)  # fmt: skip
        return
    if config.what == "clients":
        print_rows("environments", measure_clients(config.seconds), config.json)
        return
    if config.what == "import":
        print_rows("seconds to import", measure_imports(), config.json)
        return
    speeds = measure_engine(config.lanes, config.seconds)
    if config.json:
        ratios = {"compiled_over_plain": speeds.get("lanes_compiled", 0) / speeds["plain_loop"],
                  "compiled_over_limit": speeds.get("lanes_compiled", 0) / speeds["matmul_limit"]}  # fmt: skip
        print(
            json.dumps(
                {"lanes": config.lanes, "threads": torch.get_num_threads(), "steps_per_second": speeds, **ratios}
            )
        )
        return
    table = Table(title=f"inner steps per second, {config.lanes} lanes, {torch.get_num_threads()} threads")
    for heading in ("", "steps/s", "x plain loop", "of the limit"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, what in NAMES.items():
        if name in speeds:
            value = speeds[name]
            table.add_row(
                what, f"{value:,.0f}", f"{value / speeds['plain_loop']:.1f}", f"{value / speeds['matmul_limit']:.0%}"
            )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
