"""Measure what an update of each optimizer costs, store it in envs/engine/prices.json, and write docs/prices.md.

In passes over a microbatch (forward and backward), in one thread, on every model of the task families and on an MLP of
784-256-256-10 at several microbatches. Close everything else first: it is a measurement of time.
"""

import json
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table
from tqdm import tqdm

from loopwright.agents.controllers.competitors import COMPETITORS
from loopwright.agents.controllers.optimizers import Optimized
from loopwright.envs.engine.prices import PRICE_ROUNDS, PRICES_FILE, measure_prices, read_prices
from loopwright.envs.loop.holding import holding_file
from loopwright.envs.loop.ledger import read_versions
from loopwright.envs.loop.plan import OPTIMIZERS
from loopwright.envs.loop.storage import write_whole
from loopwright.inner_tasks.models import MLP, ModelSpec
from loopwright.inner_tasks.registry import list_families
from loopwright.scripts.run import run

WIDE = MLP(784, (256, 256), 10)
WIDE_AT = (16, 64, 256)


@dataclass
class Config:
    microbatch: int = 16
    """Samples of a tick, for the models of the task families."""
    missing: bool = False
    """Measure only what is not stored yet, a new family's models; other prices stay, and what was judged by them."""
    show: bool = False
    """Measure nothing; write the page of what is stored, and print it."""
    docs: Path = Path("docs")
    """Where prices.md goes."""


def list_library_optimizers() -> dict[str, Optimized]:
    """An optimizer of each kind that competitors have, by its kind."""
    first = [next(iter(competitor.candidates(1))) for competitor in COMPETITORS.values()]
    return {controller.kind: controller for controller in first if isinstance(controller, Optimized)}


def count_parameters(model: ModelSpec) -> int:
    return sum(parameter.numel() for parameter in model.build().parameters())


def write_prices_page(stored: dict[str, Any]) -> str:
    """docs/prices.md: a row for each model and microbatch, the smallest model first."""
    provenance, entries = stored["provenance"], stored["entries"]
    names = list(entries[0]["passes"])
    own, others = names[: len(OPTIMIZERS)], names[len(OPTIMIZERS) :]
    lines = [
        "# What an update costs",
        "",
        "Written by `loopwright prices`: seconds of one update over seconds of forward and backward on one microbatch,",
        f"the fastest of several implementations, median of {provenance['rounds']} rounds, one thread,",
        f"{provenance['cpu']}, torch {provenance['versions']['torch']}, {provenance['date']}.",
        f"{', '.join(f'`{name}`' for name in own)} are the rules that a plan can ask for; the others are what",
        "competitors use. Under the price list `measured` every update is charged so many passes over its microbatch;",
        "under `gradients` it is free, as it nearly is for large models and large batches.",
        "",
        f"| model | parameters | microbatch | {' | '.join((*own, *others))} |",
        "|---|" + "---:|" * (2 + len(names)),
    ]
    for entry in sorted(entries, key=lambda entry: (entry["parameters"], entry["microbatch"])):
        prices = " | ".join(f"{entry['passes'][name]:.2g}" for name in names)
        lines.append(f"| `{entry['model']}` | {entry['parameters']} | {entry['microbatch']} | {prices} |")
    return "\n".join(lines) + "\n"


def main(config: Config) -> None:
    if config.show:
        written = write_prices_page(json.loads(PRICES_FILE.read_text()))
        write_whole(config.docs / "prices.md", written)
        print(written)
        return
    with holding_file(PRICES_FILE):
        measure_all(config)


def measure_all(config: Config) -> None:
    """Measure and store what updates cost, and print it."""
    models = list(dict.fromkeys(model for family in list_families().values() for model in family.models))
    wanted = [*((model, config.microbatch) for model in models), *((WIDE, microbatch) for microbatch in WIDE_AT)]
    before = json.loads(PRICES_FILE.read_text()) if config.missing and PRICES_FILE.exists() else None
    others, entries = list_library_optimizers(), before["entries"] if before else []
    stored = {(entry["model"], entry["microbatch"]) for entry in entries}
    wanted = [(model, microbatch) for model, microbatch in wanted if (repr(model), microbatch) not in stored]
    for model, microbatch in tqdm(wanted, desc="prices", unit="model"):
        passes = {name: geq / microbatch for name, geq in measure_prices(model, microbatch, others).items()}
        rounded = {name: float(f"{value:.3g}") for name, value in passes.items()}
        entries.append({"model": repr(model), "parameters": count_parameters(model), "microbatch": microbatch,
                        "passes": rounded})  # fmt: skip
    day = before["provenance"]["date"] if before else date.today().isoformat()  # of most of them
    provenance = {"unit": "passes over a microbatch", "threads": 1, "rounds": PRICE_ROUNDS, "versions": read_versions(),
                  "cpu": torch.backends.cpu.get_cpu_capability(), "date": day}  # fmt: skip
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    write_whole(PRICES_FILE, f'{{"provenance": {json.dumps(provenance)},\n"entries": [\n{lines}\n]}}\n')
    read_prices.cache_clear()
    write_whole(config.docs / "prices.md", write_prices_page({"provenance": provenance, "entries": entries}))
    table = Table("model", *(Column(name, justify="right") for name in entries[0]["passes"]))
    for entry in entries:
        table.add_row(f"{entry['model']} at {entry['microbatch']}", *(f"{v:.2g}" for v in entry["passes"].values()))
    Console(width=200).print(table)


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
