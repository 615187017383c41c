"""attach: the two lines that a loop of one's own needs."""

from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from loopwright.agents.controllers.policy import Policy
from loopwright.agents.steering.steering import Steering


def attach(
    optimizer: Optimizer, policy: Policy | Path | str | None = None, steps: int | None = None, **options: Any
) -> Steering:
    """Let a policy steer the loop whose updates ``optimizer`` makes: two lines in a loop of one's own.

    ``steering = loopwright.attach(optimizer, steps=10_000)`` before it, and in it, after ``optimizer.step()``,
    ``steering.step(loss)``. For arguments and errors see ``Steering``.
    """
    return Steering(optimizer, policy, steps, **options)
