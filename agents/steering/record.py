"""The audit log of a steered loop: the same ledger as an environment's, without what only an environment knows."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from loopwright.agents.steering.processes import is_first
from loopwright.envs.loop.averages import Floats
from loopwright.envs.loop.ledger import Ledger, read_ledger, read_versions
from loopwright.envs.loop.observation import name_features
from loopwright.envs.loop.plan import describe_column
from loopwright.envs.loop.telemetry import WINDOW, Telemetry

if TYPE_CHECKING:
    from loopwright.agents.steering.steering import Steering


class SteeringRecord:
    """Writes the decisions of a ``steering`` to the ledger at ``path``, which is begun, or gone on with.

    Nothing is written where there is no path, and of several processes that train together only by the first.
    """

    def __init__(self, path: Path | str | None, steering: "Steering") -> None:
        self._steering = steering
        self._ledger: Ledger | None = None
        if path is None or not is_first():
            return
        if Path(path).exists():
            self._ledger = Ledger.resume(Path(path))
            return
        policy, optimizer = steering.policy, steering.groups.optimizer
        header = {
            "task": None, "steered": type(optimizer).__name__, "start": describe_column(steering.plan),
            "steps": steering.steps,
            "author": {"name": policy.name, "fingerprint": policy.fingerprint, "knobs": policy.knobs.name,
                       "action": policy.knobs.action},
            "window": WINDOW, "every": steering.every, "advise": steering.advise, "versions": read_versions(),
        }  # fmt: skip
        self._ledger = Ledger.create(Path(path), header)

    def close(self) -> None:
        """Let others have the ledger."""
        self._ledger = None

    def go_back(self, decision: int) -> None:
        """Cut off what follows a decision, -1 for all: it was made by a process that has ended, and is made again.

        What was begun before, from decision 0, stays.
        """
        if self._ledger is None:
            return
        entries = read_ledger(self._ledger.path).entries
        count = len(entries)
        while count and entries[count - 1]["decision"] > decision:
            count -= 1
            if entries[count]["decision"] == 0:
                break
        self._ledger.keep(count)

    def write(
        self,
        seen: Floats,
        found: Mapping[str, float],
        chosen: Mapping[str, float],
        telemetry: Telemetry | None,
        verdict: str,
    ) -> None:
        """One decision: what was seen, the plan that was found and the one chosen; what was measured before it."""
        if self._ledger is None:
            return
        self._ledger.append(
            {
                "decision": self._steering.decisions, "updates": self._steering.updates,
                "observation": name_features(seen[0].tolist()), "plan_before": describe_column(found),
                "plan": describe_column(chosen), "telemetry": telemetry, "verdict": verdict,
            }
        )  # fmt: skip
