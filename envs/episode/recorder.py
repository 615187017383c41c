"""Recorder: writes the ledgers of the episodes of a batch, one file each, into a folder."""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from loopwright.envs.episode.decision import Step
from loopwright.envs.episode.start import Start
from loopwright.envs.loop.errors import LedgerExistsError
from loopwright.envs.loop.ledger import Author, Ledger, read_versions
from loopwright.envs.loop.observation import Needs, name_features
from loopwright.envs.loop.plan import unstack_plans
from loopwright.envs.loop.telemetry import TELEMETRY
from loopwright.inner_tasks.task import SPLITS, Task


@lru_cache(maxsize=1024)
def fingerprint_task(task: Task) -> str:
    """SHA-256 of a task's model, data, initial scale and calibration."""
    digest = hashlib.sha256(repr((task.model, task.initial_scale, task.calibration, task.repeats)).encode())
    for name in SPLITS:
        split = getattr(task, name)
        digest.update(split.inputs.numpy().tobytes() + split.labels.numpy().tobytes())
    return digest.hexdigest()


class Recorder:
    """Listens to a batch of episodes and keeps a ledger of each.

    Args:
        folder: where the files go, named after task and seed.
        author: who decides.
    """

    def __init__(self, folder: Path, author: Author | None = None) -> None:
        self._folder, self._author = folder, author or Author()
        self._ledgers: dict[int, Ledger] = {}
        self._decisions: dict[int, int] = {}

    def begin(self, lane: int, start: Start, budget: float, setup: dict[str, Any]) -> None:
        """Start the ledger of an episode; a file name already taken gets a number. ``setup`` is the batch's."""
        task, seed = start.task, start.seed
        header = {
            "task": task.name, "task_fingerprint": fingerprint_task(task), "seed": seed, "lane": lane,
            "start": start.plan.as_json(), "budget": budget, "prices": dict(start.prices or {}),
            "withheld": list(start.withheld), "open_budget": start.open_budget,
            "target": None if task.calibration is None else task.calibration.target,
            "author": asdict(self._author), "versions": read_versions(), **setup,
        }  # fmt: skip
        name = re.sub(r"[^\w.-]", "-", task.name) + f"-seed-{seed}"  # a name that is no path
        self._ledgers[lane] = _find_place(
            self._folder / f"{name}.jsonl", partial(Ledger.create, header=header, hold=False)
        )
        self._decisions[lane] = 0

    def __getstate__(self) -> dict[str, Any]:
        """Of open ledgers what is in them: whoever is copied, or pickled, goes on in files of its own."""
        kept = {lane: (ledger.path, ledger.path.read_bytes()) for lane, ledger in self._ledgers.items()}
        return vars(self) | {"_ledgers": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _ledgers={})
        for lane, (path, content) in state["_ledgers"].items():
            self._ledgers[lane] = _find_place(path, partial(Ledger.create_copy, content=content))

    def end(self, lanes: Iterable[int]) -> None:
        """Close the ledgers of ``lanes``, where one is open, after what was last written."""
        for lane in lanes:
            self._ledgers.pop(lane, None)

    def record(self, step: Step, state: Mapping[str, Sequence[Any]], needs: Needs) -> None:
        """Write a decision to every open ledger; ``state`` is what the batch says of its lanes after it."""
        found, chosen = unstack_plans(step.found), unstack_plans(step.plans)
        for lane in list(self._ledgers):
            entry = {
                "decision": self._decisions[lane],
                "observation": name_features(step.seen[lane].tolist(), needs),
                "action": None if step.actions is None else np.asarray(step.actions)[lane].tolist(),
                "plan_before": found[lane].as_json(),
                "plan": chosen[lane].as_json(),
                "telemetry": {name: float(step.telemetry[name][lane]) for name in TELEMETRY},
                "reward": float(step.decision.reward[lane]),
                **{name: state[name][lane] for name in ("cost", "loss", "metric", "outcome", "verdict")},
            }
            self._ledgers[lane].append(entry)
            self._decisions[lane] += 1
        self.end(step.decision.done.nonzero().flatten().tolist())


def _find_place(path: Path, create: Callable[[Path], Ledger]) -> Ledger:
    """What ``create`` makes of ``path``, or, where there is a file, of the first that has a number at its end."""
    for number in itertools.count(1):
        try:
            return create(path if number == 1 else path.with_stem(f"{path.stem}-{number}"))
        except LedgerExistsError:
            continue
    raise AssertionError("numbers do not end")
