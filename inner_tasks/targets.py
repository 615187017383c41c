"""Reads and writes ``targets.json``: the calibrated targets that ship with the package, and their provenance."""

import json
import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from loopwright.envs.loop.storage import write_whole
from loopwright.inner_tasks.task import Calibration

TARGETS_FILE = Path(__file__).with_name("targets.json")


@dataclass
class StoredTargets:
    """Calibrations by task name, for each task that was dropped the reason, and where they come from, by search."""

    provenance: dict[str, Any] = field(default_factory=dict)
    targets: dict[str, Calibration] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


def read_targets() -> StoredTargets:
    """A fresh copy of what is stored."""
    if not TARGETS_FILE.exists():
        return StoredTargets()
    content = json.loads(TARGETS_FILE.read_text())
    targets = {name: _restore(entry, content["winners"]) for name, entry in content["targets"].items()}
    return StoredTargets(content["provenance"], targets, content["dropped"])


def _restore(entry: dict[str, Any], common: dict[str, Any]) -> Calibration:
    """``common`` is what all winners share, unless their own say otherwise."""
    curve = tuple((float(geq), loss) for geq, loss in zip(*entry["curve"], strict=True))
    winner = {**common, **entry["winner"]} if "winner" in entry else None
    end = (entry["cost"], entry["target"])
    return Calibration(
        entry["target"], entry["cost"], (*curve, end), winner, entry.get("easier"), entry["decisions"], entry["search"]
    )


def _shorten(calibration: Calibration, common: dict[str, Any]) -> dict[str, Any]:
    """The inverse of ``_restore``; the curve by columns, without its end."""
    curve = calibration.curve[:-1]
    own = {k: v for k, v in (calibration.winner or {}).items() if common.get(k, math.nan) != v}
    entry: dict[str, Any] = {
        "target": calibration.target, "cost": calibration.cost, "decisions": calibration.decisions,
        "search": calibration.search, "curve": [[int(geq) for geq, _ in curve], [loss for _, loss in curve]],
    }  # fmt: skip
    if calibration.winner is not None:
        entry["winner"] = own
    return entry if calibration.easier is None else {**entry, "easier": calibration.easier}


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
    common = dict(next((c.winner for c in targets.values() if c.winner is not None), {}))
    common = {k: v for k, v in common.items() if all((c.winner or common).get(k) == v for c in targets.values())}
    lines = ",\n".join(
        f"    {json.dumps(name)}: {json.dumps(_shorten(c, common))}" for name, c in sorted(targets.items())
    )
    refused = ",\n".join(f"    {json.dumps(name)}: {json.dumps(why)}" for name, why in sorted(dropped.items()))
    write_whole(
        TARGETS_FILE,
        f'{{\n  "provenance": {json.dumps(provenance)},\n  "winners": {json.dumps(common)},\n'
        f'  "targets": {{\n{lines}\n  }},\n  "dropped": {{\n{refused}\n  }}\n}}\n',
    )
    _stored.cache_clear()
