"""Evaluate saved policies on tasks they never saw, against tuned competitors.

    loopwright evaluate runs/mine/policy.safetensors --folder runs/mine/evaluation

Prints a table and writes evaluation.json and evaluation.png to the folder.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from tqdm import tqdm

from loopwright.agents.bundle import load_bundle
from loopwright.agents.competitors import tuned_competitors
from loopwright.agents.controller import Controller
from loopwright.agents.evaluation import Job, run_controller, run_jobs
from loopwright.agents.report import Evaluation, best_competitor, draw, ratio_table, typical_tasks, write_json
from loopwright.envs.episodes import EpisodeSettings
from loopwright.inner_tasks.errors import LoopwrightError
from loopwright.inner_tasks.suites import get_suite
from loopwright.inner_tasks.task import get_tasks
from loopwright.scripts.run import compile_where_possible, run

DRAWN_SEEDS = 3


@dataclass
class Config:
    bundles: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Saved policies (.safetensors)."""
    folder: Path = Path("runs/evaluation")
    """Where evaluation.json and evaluation.png go."""
    suites: tuple[str, ...] = ("held-out", "new")
    """Suites to evaluate on."""
    seeds: int = 10
    """Paired seeds per task."""
    lanes: int = 64
    """Inner runs side by side."""
    ledgers: bool = False
    """Write an audit log of every run of the saved policies, to ledgers/ in the folder."""
    json: bool = False
    """Print the result as JSON instead of a table."""


def evaluate(
    agents: list[Controller],
    suites: tuple[str, ...],
    seeds: int,
    lanes: int,
    show: bool,
    ledgers: Path | None = None,
) -> Evaluation:
    """Run the agents and every tuned competitor on the suites' tasks; ``ledgers`` is a folder for the agents' logs."""
    members = {name: tuple(get_suite(name).tasks()) for name in suites}
    names = [name for tasks in members.values() for name in tasks]
    run_seeds = [1_000_000 + i for i in range(seeds)]
    traced = [(name, seed) for name in names for seed in run_seeds[:DRAWN_SEEDS]]
    controllers = [*agents, *tuned_competitors()]
    settings = EpisodeSettings(compile=compile_where_possible())
    tasks = get_tasks(names)
    records = []
    with tqdm(total=len(controllers) * len(names) * seeds, desc="evaluate", unit="run", disable=not show) as bar:
        common: dict[str, Any] = {"lanes": lanes, "traced": traced, "on_run": lambda _: bar.update()}
        if ledgers is not None:
            for agent in agents:
                records += run_controller(agent, tasks, run_seeds, settings, ledgers=ledgers / agent.name, **common)
        rest = controllers if ledgers is None else controllers[len(agents) :]
        records += run_jobs(
            [Job(c, task, seed) for c in rest for task in tasks for seed in run_seeds], settings, **common
        )
    return Evaluation(agents[0].name, tuple(records), members)


def report(evaluation: Evaluation, folder: Path, provenance: dict[str, object], as_json: bool) -> None:
    """Write evaluation.json and evaluation.png, and print the table or the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(evaluation, folder / "evaluation.json", provenance)
    rivals = [m for m in evaluation.methods if m != evaluation.agent]
    rival = best_competitor(evaluation, rivals)
    drawn = list(dict.fromkeys(task for suite in evaluation.suites for task in typical_tasks(evaluation, suite, rival)))
    draw(evaluation, rival, drawn, folder / "evaluation.png")
    if as_json:
        print(json.dumps(evaluation.as_dict(provenance)))
        return
    Console(width=max(150, Console().width)).print(ratio_table(evaluation))
    print(f"wrote {folder / 'evaluation.json'} and {folder / 'evaluation.png'}")


def main(config: Config) -> None:
    if config.seeds < 1 or config.lanes < 1:
        raise LoopwrightError(f"seeds and lanes must be 1 or more, got {config.seeds} and {config.lanes}")
    bundles = [load_bundle(path) for path in config.bundles]
    if not bundles:
        raise LoopwrightError("give at least one bundle to evaluate")
    names = ["agent"] if len(bundles) == 1 else [f"agent {i}" for i in range(1, len(bundles) + 1)]
    agents: list[Controller] = [replace(bundle, name=name) for bundle, name in zip(bundles, names, strict=True)]
    ledgers = config.folder / "ledgers" if config.ledgers else None
    evaluation = evaluate(agents, config.suites, config.seeds, config.lanes, show=not config.json, ledgers=ledgers)
    provenance: dict[str, object] = {"bundles": [{"path": str(p), **b.training} for p, b in
                                                 zip(config.bundles, bundles, strict=True)]}  # fmt: skip
    report(evaluation, config.folder, provenance, config.json)


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
