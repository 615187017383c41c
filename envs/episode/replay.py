"""Executes a ledger again, and says line by line whether it comes out the same.

The run is set up as its header says (task, seed, engine, number of lanes, threads) and given the recorded plans; what
it then writes is compared with what was written. On the machine that wrote it, with the same versions, it is exact.
"""

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from loopwright.envs.engine.fusing import has_compiler
from loopwright.envs.engine.lanes import Lanes
from loopwright.envs.engine.threads import limit_threads
from loopwright.envs.episode.batch import EpisodeBatch
from loopwright.envs.episode.recorder import Recorder, fingerprint_task
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.episode.start import Start
from loopwright.envs.loop.errors import LedgerError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.ledger import Author, LedgerContent, read_ledger, read_versions
from loopwright.envs.loop.observation import Needs
from loopwright.envs.loop.plan import LoopPlan, stack_plans, unstack_plans
from loopwright.inner_tasks.registry import get_task
from loopwright.inner_tasks.task import Task

# What a decision is compared in. Its number, action and plan are what is executed.
COMPARED = ("observation", "plan_before", "verdict", "telemetry", "cost", "reward", "loss", "metric", "outcome")


@dataclass(frozen=True)
class Difference:
    """An entry of a line that came out otherwise."""

    name: str
    recorded: Any
    replayed: Any


@dataclass(frozen=True)
class Replay:
    """What came of it: the differences of each decision, and what about this machine may explain them."""

    ledger: LedgerContent
    differences: list[list[Difference]]
    notes: list[str]

    @property
    def exact(self) -> bool:
        return not any(self.differences)


def find_task(content: LedgerContent, task: Task | None = None) -> Task:
    """The task a ledger was written on: ``task`` if given, else the registered one of that name.

    Raises ``LedgerError`` if its data or model are not the same.
    """
    header = content.header
    task = task or get_task(header["task"])
    if fingerprint_task(task) != header["task_fingerprint"]:
        raise LedgerError(f"task {task.name} is not the one the ledger was written on: its fingerprint differs")
    return task


def read_plans(content: LedgerContent) -> list[LoopPlan]:
    return [LoopPlan.from_json(entry["plan"]) for entry in content.entries]


def replay(path: Path, task: Task | None = None) -> Replay:
    """Execute the ledger at ``path`` again.

    ``task`` is needed for one that is not in the registry. A run that now ends earlier or later than the record is
    different from there on. Raises ``LedgerError`` if the ledger was altered, the task is another, the run was compiled
    and there is no compiler here, or another library's optimizer made the updates.
    """
    content = read_ledger(path)
    header, task = content.header, find_task(content, task)
    if header["engine"] != Lanes.__name__:
        raise LedgerError(
            f"{path} was written by {header['engine']}, where the optimizer of {header['author']['name']!r} made the "
            f"updates; only runs of {Lanes.__name__} can be executed again"
        )
    settings = EpisodeSettings(**{**header["settings"], "prices": "gradients"})  # the run's own are in its header
    if settings.compile and not has_compiler():
        raise LedgerError(f"{path} was written by a compiled loop, and there is no C++ compiler here")
    here = read_versions()
    notes = [
        f"written with {name} {written}, replayed with {here[name]}"
        for name, written in header["versions"].items()
        if here[name] != written
    ]
    with limit_threads(header["threads"]), TemporaryDirectory() as folder:
        forged = _execute(content, task, settings, Path(folder))
        (again,) = Path(folder).iterdir()
        replayed = read_ledger(again).entries
    differences = [wrong + _compare(old, new) for old, new, wrong in zip_longest(content.entries, replayed, forged)]
    return Replay(content, differences, notes)


def _execute(content: LedgerContent, task: Task, settings: EpisodeSettings, folder: Path) -> list[list[Difference]]:
    """Run the recorded plans, writing a ledger to ``folder``; where a plan is not what its action makes, say so."""
    header = content.header
    lanes, lane, author = header["lanes"], header["lane"], Author(**header["author"])
    batch = EpisodeBatch(
        task, lanes, settings, needs=Needs(header["needs"]), rolls_back=header["rolls_back"],
        recorder=Recorder(folder, author),
    )  # fmt: skip
    start = LoopPlan.from_json(header["start"])
    withheld, open_budget = tuple(header["withheld"]), header.get("open_budget", 0.0)  # there were none at first
    begun = Start(task, header["seed"], start, header["prices"], withheld=withheld, open_budget=open_budget)
    batch.begin([lane], [begun])
    knobs = KnobSet(author.knobs, author.action or "discrete") if author.knobs else None
    wrong: list[list[Difference]] = []
    for entry, plan in zip(content.entries, read_plans(content), strict=True):
        actions, found = None, []
        if knobs is not None and entry["action"] is not None:
            actions = np.array([entry["action"]] * lanes)
            follows = unstack_plans(knobs.apply(actions, batch.plans, batch.step_ratio))[lane].as_json()
            found = [Difference("plan", entry["plan"], follows)] if follows != entry["plan"] else []
        batch.decide(stack_plans([plan] * lanes), actions)
        wrong.append(found)
    return wrong


def _compare(recorded: dict[str, Any], replayed: dict[str, Any] | None) -> list[Difference]:
    """``replayed`` is None for a decision before which the run had ended when it was executed again."""
    if replayed is None:
        return [Difference("decision", recorded["decision"], None)]
    found = []
    for name in COMPARED:
        old, new = recorded[name], replayed[name]
        if isinstance(old, dict) and isinstance(new, dict):
            found += [Difference(f"{name}.{key}", old[key], new.get(key)) for key in old if old[key] != new.get(key)]
        elif old != new:
            found.append(Difference(name, old, new))
    return found
