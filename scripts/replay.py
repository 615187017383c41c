"""Execute an audit log again and compare it line by line; or show it; or follow its plans elsewhere.

    loopwright replay runs/evaluation/ledgers/agent/digits-mlp-0-seed-1000000.jsonl
    loopwright replay LEDGER --show --plot run.png
    loopwright replay LEDGER --open-loop --seed 7 --task digits-conv:0

Exits with 0 if all of the run is there, from its header to its end, and every line comes out the same; with 1 if not.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from loopwright.agents.controllers.simple import OpenLoop
from loopwright.agents.judging.runner import run_controller
from loopwright.envs.episode.ledger_fields import is_steered, read_checked_ledger
from loopwright.envs.episode.replay import Replay, find_task, read_plans, replay
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.errors import LedgerError, LoopwrightError
from loopwright.envs.loop.ledger import LedgerContent
from loopwright.inner_tasks.registry import get_task
from loopwright.scripts.run import run
from loopwright.scripts.showing import draw_ledger, show_ledger


@dataclass
class Config:
    ledger: Annotated[Path, tyro.conf.Positional]
    """The ledger (.jsonl)."""
    show: bool = False
    """Print the decisions as a table: what was seen, what was changed, what came of it. Nothing is executed."""
    plot: Path | None = None
    """Draw loss and plan to this file (.png, .svg, .pdf). Nothing is executed."""
    open_loop: bool = False
    """Follow only its plans, without the policy, on another seed or task."""
    seed: int | None = None
    """With --open-loop: seed of that run; by default one more than the ledger's."""
    task: str | None = None
    """With --open-loop: task of that run; by default the ledger's."""
    json: bool = False
    """Print JSON."""


def main(config: Config) -> int:
    if (config.seed is not None or config.task is not None) and not config.open_loop:
        raise LoopwrightError("--seed and --task go with --open-loop; a ledger is replayed on its own seed and task")
    content = read_checked_ledger(config.ledger)
    if content.torn:
        print(f"{config.ledger}: the last line is torn ({content.torn} bytes) and left out", file=sys.stderr)
    if config.show or config.plot is not None:
        if config.show:
            show_ledger(content, config.json)
        if config.plot is not None:
            draw_ledger(content, config.plot)
        return 0
    if is_steered(content):
        raise LoopwrightError(
            "the ledger is of a loop of your own, which cannot be executed again; --show or --plot it"
        )
    if config.open_loop:
        follow(content, config)
        return 0
    return report(replay(config.ledger), config.json)


def report(result: Replay, as_json: bool) -> int:
    """Print what came out otherwise; the exit status."""
    rows: list[dict[str, Any]] = [
        {"line": line, "differences": [vars(d) for d in found]}
        for line, found in enumerate([result.header, *result.differences], start=1)
        if found
    ]
    if as_json:
        print(json.dumps({"exact": result.exact, "finished": result.finished, "lines": len(result.differences) + 1,
                          "different": rows, "notes": result.notes}))  # fmt: skip
        return 0 if result.exact else 1
    for note in result.notes:
        print(f"note: {note}")
    for row in rows:
        first, *more = row["differences"]
        rest = f" and {len(more)} more" if more else ""
        print(f"line {row['line']}: {first['name']} was {first['recorded']}, is {first['replayed']}{rest}")
    same = sum(not found for found in result.differences)
    print(f"{same} of {len(result.differences)} decisions came out the same, bit for bit")
    if not result.finished:
        print("unfinished: the run does not end with the last line; what came after it, if anything, is not on record")
    return 0 if result.exact else 1


def follow(content: LedgerContent, config: Config) -> None:
    """Run the ledger's plans open-loop and print the result beside the ledger's own."""
    if not content.entries:
        raise LedgerError(f"{config.ledger} holds no decision to follow")
    header, last = content.header, content.entries[-1]
    task = find_task(content) if config.task is None else get_task(config.task)
    seed = header["seed"] + 1 if config.seed is None else config.seed
    settings = EpisodeSettings(**{**header["settings"], "compile": False})
    (record,) = run_controller(OpenLoop(tuple(read_plans(content))), [task], [seed], settings)
    if config.json:
        print(json.dumps(record.as_json()))
        return
    print(f"recorded:  {header['task']} seed {header['seed']}: {last['outcome']} after {last['cost']:.0f} of "
          f"{header['budget']:.0f} geq")  # fmt: skip
    print(f"open loop: {task.name} seed {seed}: {record.outcome}, {record.cost:.0f} of {record.budget:.0f} geq")


if __name__ == "__main__":
    sys.exit(run(sys.modules[__name__]))
