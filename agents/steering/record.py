"""The audit log of a steered loop: the same ledger as an environment's, without what only an environment knows."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from loopwright.envs.loop.averages import Floats
from loopwright.envs.loop.ledger import Ledger, read_versions
from loopwright.envs.loop.observation import name_features
from loopwright.envs.loop.plan import describe_column
from loopwright.envs.loop.telemetry import WINDOW, Telemetry

if TYPE_CHECKING:
    from loopwright.agents.steering.steering import Steering


class SteeringRecord:
    """Writes the decisions of a ``steering`` to the ledger at ``path``, which is begun, or gone on with."""

    def __init__(self, path: Path, steering: "Steering") -> None:
        self._steering = steering
        if path.exists():
            self._ledger = Ledger.resume(path)
            return
        policy, optimizer = steering.policy, steering.groups.optimizer
        header = {
            "task": None, "steered": type(optimizer).__name__, "start": describe_column(steering.plan),
            "steps": steering.steps,
            "author": {"name": policy.name, "fingerprint": policy.fingerprint, "knobs": policy.knobs.name,
                       "action": policy.knobs.action},
            "window": WINDOW, "every": steering.every, "advise": steering.advise, "versions": read_versions(),
        }  # fmt: skip
        self._ledger = Ledger.create(path, header)

    def write(
        self,
        seen: Floats,
        found: Mapping[str, float],
        chosen: Mapping[str, float],
        telemetry: Telemetry | None,
        verdict: str,
    ) -> None:
        """One decision: what was seen, the plan that was found and the one chosen; what was measured before it."""
        self._ledger.append(
            {
                "decision": self._steering.decisions, "updates": self._steering.updates,
                "observation": name_features(seen[0].tolist()), "plan_before": describe_column(found),
                "plan": describe_column(chosen), "telemetry": telemetry, "verdict": verdict,
            }
        )  # fmt: skip
