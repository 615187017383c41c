"""Reads and writes ``targets.json``: the calibrated targets that ship with the package, and their provenance."""

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from loopwright.inner_tasks.task import Calibration

TARGETS_FILE = Path(__file__).with_name("targets.json")


@dataclass
class StoredTargets:
    """Calibrations by task name, and for each task that was dropped the reason."""

    provenance: dict[str, Any] = field(default_factory=dict)
    targets: dict[str, Calibration] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


def read_targets() -> StoredTargets:
    """A fresh copy of what is stored."""
    if not TARGETS_FILE.exists():
        return StoredTargets()
    content = json.loads(TARGETS_FILE.read_text())
    targets = {
        name: Calibration(
            entry["target"],
            entry["cost"],
            tuple((geq, loss) for geq, loss in entry["curve"]),
            entry.get("winner"),
            entry.get("easier"),
        )
        for name, entry in content["targets"].items()
    }
    return StoredTargets(content["provenance"], targets, content["dropped"])


@lru_cache(maxsize=1)
def _stored() -> StoredTargets:
    return read_targets()


def find_calibration(task_name: str) -> Calibration | None:
    """The stored calibration of a task, or None where the task has none."""
    return _stored().targets.get(task_name)


def list_calibrated() -> list[str]:
    """Names of the tasks that have a stored target."""
    return list(_stored().targets)


def write_targets(provenance: dict[str, Any], targets: dict[str, Calibration], dropped: dict[str, str]) -> None:
    """Replace the stored targets: one task a line, so that a change reads as one in a diff."""
    entries = {
        name: {
            "target": c.target,
            "cost": c.cost,
            "winner": c.winner,
            "easier": c.easier,
            "curve": [list(point) for point in c.curve],
        }
        for name, c in sorted(targets.items())
    }
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
    refused = ",\n".join(f"    {json.dumps(name)}: {json.dumps(why)}" for name, why in sorted(dropped.items()))
    TARGETS_FILE.write_text(
        f'{{\n  "provenance": {json.dumps(provenance)},\n'
        f'  "targets": {{\n{lines}\n  }},\n  "dropped": {{\n{refused}\n  }}\n}}\n'
    )
    _stored.cache_clear()
