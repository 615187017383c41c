"""Executes a ledger again, and says line by line whether it comes out the same.

The run is set up as its header says (task, seed, engine, number of lanes, threads) and given the recorded plans; what
it then writes is compared with what was written, field by field, the header too. On the machine that wrote it, with the
same versions, it is exact. Taken as given, since nothing here could tell: the author's name and fingerprint, what
updates cost, the versions.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from loopwright.envs.engine.fusing import has_compiler
from loopwright.envs.engine.lanes import Lanes
from loopwright.envs.engine.serial_lanes import SerialLanes
from loopwright.envs.engine.threads import limit_threads
from loopwright.envs.episode.batch import EpisodeBatch
from loopwright.envs.episode.decision import OUTCOMES, RUNNING
from loopwright.envs.episode.ledger_fields import is_steered, read_checked_ledger
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

# Of a header: what may differ where all that is computed comes out the same, and is noted instead.
NOTED = ("versions", "threads")
ABSENT = "(absent)"


@dataclass(frozen=True)
class Difference:
    """An entry of a line that came out otherwise; one of the two may be ``ABSENT``."""

    name: str
    recorded: Any
    replayed: Any


@dataclass(frozen=True)
class Replay:
    """What came of it.

    Attributes:
        ledger: what was executed again.
        header: what its header says otherwise than the run that it describes.
        differences: those of each decision.
        notes: what about this machine may explain them.
    """

    ledger: LedgerContent
    header: list[Difference]
    differences: list[list[Difference]]
    notes: list[str]

    @property
    def same(self) -> bool:
        """Whether every line that is there came out the same, bit for bit."""
        return not self.header and not any(self.differences)

    @property
    def finished(self) -> bool:
        """Whether the last line is the end of the run. Where it is not, lines may be missing after it."""
        return bool(self.ledger.entries[-1]["outcome"] != OUTCOMES[RUNNING])

    @property
    def exact(self) -> bool:
        """Whether all of the run is there, from its header to its end, and comes out the same."""
        return self.same and self.finished


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


def replay(path: Path | str, task: Task | None = None) -> Replay:
    """Execute the ledger at ``path`` again.

    ``task`` is needed for one that is not in the registry. A run that now ends earlier or later than the record is
    different from there on. Raises ``LedgerError`` if the ledger was altered, a field of it cannot be, there is no
    decision in it, the task is another, the run was compiled and there is no compiler here, another library's optimizer
    made the updates, or the loop was a user's own.
    """
    content = read_checked_ledger(Path(path))
    if is_steered(content):
        raise LedgerError(f"{path} is of a loop of your own, which cannot be executed again; it can be shown")
    header, task = content.header, find_task(content, task)
    if header["engine"] not in (Lanes.__name__, SerialLanes.__name__):
        raise LedgerError(
            f"{path} was written by {header['engine']}, where the optimizer of {header['author']['name']!r} made the "
            f"updates; only runs of {Lanes.__name__} can be executed again"
        )
    if not content.entries:
        raise LedgerError(f"{path} holds no decision: nothing to replay")
    settings = EpisodeSettings(**{**header["settings"], "prices": "gradients"})  # the run's own are in its header
    if settings.compile and not has_compiler():
        raise LedgerError(f"{path} was written by a compiled loop, and there is no C++ compiler here")
    threads = min(header["threads"], os.cpu_count() or 1)
    here = read_versions()
    notes = [
        f"written with {name} {written}, replayed with {here.get(name, 'none')}"
        for name, written in header["versions"].items()
        if here.get(name) != written
    ]
    if threads != header["threads"]:
        notes.append(f"written with {header['threads']} threads, replayed with {threads}")
    with limit_threads(threads), TemporaryDirectory() as folder:
        forged = _execute(content, task, settings, Path(folder))
        (again,) = Path(folder).iterdir()
        replayed = read_ledger(again)
    differences = [
        wrong + _compare_decision(old, new)
        for old, new, wrong in zip_longest(content.entries, replayed.entries, forged)
    ]
    replayed.header["settings"]["prices"] = header["settings"]["prices"]  # a name for what its header has in full
    return Replay(content, _compare(header, replayed.header, NOTED), differences, notes)


def _execute(content: LedgerContent, task: Task, settings: EpisodeSettings, folder: Path) -> list[list[Difference]]:
    """Run the recorded plans, writing a ledger to ``folder``; where a plan is not what its action makes, say so."""
    header = content.header
    lanes, lane, author = header["lanes"], header["lane"], Author(**header["author"])
    batch = EpisodeBatch(
        task, lanes, settings, needs=Needs(header["needs"]), rolls_back=header["rolls_back"],
        recorder=Recorder(folder, author),
    )  # fmt: skip
    start = LoopPlan.from_json(header["start"])
    withheld, open_budget = tuple(header["withheld"]), header.get("open_budget", 0.0)
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
        elif (knobs is None) != (entry["action"] is None):
            found = [Difference("action", entry["action"], ABSENT)]  # it goes with the knobs that it moves
        batch.decide(stack_plans([plan] * lanes), actions)
        wrong.append(found)
    return wrong


def _compare_decision(recorded: dict[str, Any], replayed: dict[str, Any] | None) -> list[Difference]:
    """``replayed`` is None for a decision before which the run had ended when it was executed again."""
    return [Difference("decision", recorded["decision"], None)] if replayed is None else _compare(recorded, replayed)


def _compare(recorded: dict[str, Any], replayed: dict[str, Any], apart: Collection[str] = ()) -> list[Difference]:
    """What differs in any entry of either, but for those ``apart``, dicts entry by entry."""
    found = []
    for name in dict.fromkeys((*recorded, *replayed)):
        old, new = recorded.get(name, ABSENT), replayed.get(name, ABSENT)
        if name in apart:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += [replace(own, name=f"{name}.{own.name}") for own in _compare(old, new)]
        elif old != new or type(old) is not type(new):
            found.append(Difference(name, old, new))
    return found
