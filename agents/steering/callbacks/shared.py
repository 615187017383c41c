"""What the callbacks share."""

import torch

from loopwright.agents.steering.steering import Steering
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.plan import OPTIMIZERS


class LossMean:
    """The mean loss of the microbatches that one update is made of."""

    def __init__(self) -> None:
        self._losses: list[torch.Tensor] = []

    def add(self, loss: torch.Tensor) -> None:
        self._losses.append(loss.detach().mean())

    def take(self) -> torch.Tensor:
        """Of those since it was last asked. Raises ``LoopwrightError`` where there were none."""
        if not self._losses:
            raise LoopwrightError("an update was made without a loss: it must come from the trainer's compute_loss")
        mean = torch.stack(self._losses).mean()
        self._losses = []
        return mean


def describe_plan(steering: Steering) -> dict[str, float]:
    """What a trainer logs of the plan: the fields that can be set, by name."""
    found = {f"steering/{name}": float(steering.plan[name]) for name in sorted(steering.groups.settable)}
    rule = found.pop("steering/optimizer", None)
    if rule is not None:
        found |= {f"steering/is_{name}": float(round(rule) == number) for number, name in enumerate(OPTIMIZERS)}
    return found | {"steering/decisions": float(steering.decisions)}
