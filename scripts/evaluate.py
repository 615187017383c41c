"""Evaluate saved policies on tasks they never saw, against everything people would use instead.

    loopwright evaluate runs/a/policy.safetensors runs/b/policy.safetensors --suite held-out new --seeds 20

Bundles with the same knobs are independent trainings of one method. Every run is kept in the folder as it ends, so that
the same command goes on where it was interrupted. Prints tables and writes report.html, tables.md, summary.json and
evaluation.png beside runs.jsonl and timings.jsonl.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from tqdm import tqdm

from loopwright.agents.controllers.bundle import load_policy
from loopwright.agents.controllers.policy import Policy
from loopwright.agents.judging.evaluation import Evaluation
from loopwright.agents.judging.judge import count_runs, count_tasks, judge
from loopwright.agents.judging.report import print_tables, write_report
from loopwright.agents.judging.tables import make_tables
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.holding import holding_folder
from loopwright.scripts.run import Workers, compile_where_possible, run


@dataclass
class Config(Workers):
    bundles: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Saved policies (.safetensors), or names of those that come with the package."""
    folder: Path = Path("runs/evaluation")
    """Where the results are kept and the report goes."""
    suite: tuple[str, ...] = ("held-out", "new")
    """Suites to evaluate on."""
    seeds: int = 20
    """Paired seeds per task."""
    competitors: tuple[str, ...] = ("all",)
    """"all", with searches, oracle and ablations; "basic"; or names of competitors."""
    prices: str = "gradients"
    """What updates cost: "gradients" (nothing) or "measured"."""
    searches: bool = True
    """Run the searches with a tuning budget as well."""
    rate_spread: float = 0.0
    """The untuned track: all start from 10^U(-spread, spread) times the learning rate they were tuned to."""
    lanes: int = 64
    """Inner runs side by side."""
    ledgers: bool = False
    """Write an audit log of every run of the saved policies, to ledgers/ in the folder."""
    json: bool = False
    """Print the result as JSON instead of tables."""


def evaluate(
    bundles: Sequence[Policy],
    suites: tuple[str, ...],
    folder: Path,
    *,
    seeds: int,
    competitors: str | Sequence[str],
    prices: str = "gradients",
    searches: bool = True,
    rate_spread: float = 0.0,
    lanes: int = 64,
    ledgers: bool = False,
    workers: int = 1,
    show: bool = True,
) -> Evaluation:
    """``judge`` with progress bars."""
    counts = count_runs(bundles, count_tasks(suites), seeds, competitors, searches=searches, rate_spread=rate_spread)
    with ExitStack() as stack:
        bars = {
            name: stack.enter_context(tqdm(total=total, desc=name, unit="run", disable=not show, position=position))
            for position, (name, total) in enumerate(counts.items())
        }

        def progress(part: str, done: int) -> None:
            bars[part].set_postfix_str("", refresh=False)
            bars[part].update(done)

        settings = EpisodeSettings(compile=compile_where_possible(), prices=prices)
        if settings.compile:  # half a minute passes before the first run ends
            bars["runs"].set_postfix_str("compiling the loop of the first tasks; each kind of task has its own")
        return judge(
            bundles, suites, folder, seeds=seeds, competitors=competitors, lanes=lanes, settings=settings,
            searches=searches, rate_spread=rate_spread, ledgers=ledgers, workers=workers, progress=progress,
        )  # fmt: skip


def show_evaluation(evaluation: Evaluation, folder: Path, provenance: dict[str, Any], as_json: bool) -> None:
    """Write the report, and print the tables or the JSON."""
    written = write_report(evaluation, folder, provenance)
    if as_json:
        print(json.dumps({"provenance": provenance, **evaluation.as_dict()}))
        return
    print_tables(make_tables(evaluation), Console(width=max(150, Console().width)))
    print("\n".join([*(evaluation.headline(group) for group in evaluation.groups), *evaluation.notes]))
    print(f"wrote {', '.join(str(path) for path in written)}")


def main(config: Config) -> None:
    bundles = [load_policy(path) for path in config.bundles]
    competitors = config.competitors[0] if len(config.competitors) == 1 else config.competitors
    with holding_folder(config.folder), config.working():
        evaluation = evaluate(
            bundles, config.suite, config.folder, seeds=config.seeds, competitors=competitors, prices=config.prices,
            searches=config.searches, rate_spread=config.rate_spread, lanes=config.lanes, ledgers=config.ledgers,
            workers=config.workers, show=not config.json,
        )  # fmt: skip
        show_evaluation(evaluation, config.folder, provenance(bundles), config.json)


def provenance(bundles: Sequence[Policy]) -> dict[str, Any]:
    """Where the judged policies come from."""
    return {"bundles": [{"fingerprint": b.fingerprint, "knobs": b.knobs.name, **b.training} for b in bundles]}


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
