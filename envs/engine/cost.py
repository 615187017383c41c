"""geq, the unit of cost: the measured FLOPs of a full forward and backward pass on one sample of a task = 1."""

from dataclasses import dataclass
from functools import lru_cache

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from loopwright.inner_tasks.models import ModelSpec

_SAMPLES = 8


@dataclass(frozen=True)
class Cost:
    """What things cost for one model of ``blocks`` blocks. All but ``flops`` are geq per sample.

    Attributes:
        flops: what 1 geq stands for.
        forward: a forward pass alone: a look at a control sample, or scoring a training sample.
        path: for each block b, forward and backward when blocks b and above receive gradient; ``path[0]`` is 1.
        single: for each block b, forward and backward when block b alone receives gradient.
    """

    flops: float
    forward: float
    path: tuple[float, ...]
    single: tuple[float, ...]

    def look(self, samples: int) -> float:
        """A controller's look at ``samples`` of the control split: forward only, in geq."""
        return self.forward * samples


@lru_cache
def measure_cost(model: ModelSpec) -> Cost:
    """Count the FLOPs of one model's passes. First layers need no input gradient, a frozen prefix no backward."""
    network = model.build()
    blocks = range(len(network))
    flops = {active: _count(network, model, active) for active in (*((b, len(network)) for b in blocks),
                                                                   *((b, b + 1) for b in blocks), (0, 0))}  # fmt: skip
    full = flops[0, len(network)]
    return Cost(
        flops=full / _SAMPLES,
        forward=flops[0, 0] / full,
        path=tuple(flops[b, len(network)] / full for b in blocks),
        single=tuple(flops[b, b + 1] / full for b in blocks),
    )


def _count(network: nn.Sequential, model: ModelSpec, active: tuple[int, int]) -> int:
    """FLOPs of forward and backward with gradient for blocks ``active[0]`` up to but not ``active[1]``."""
    for b, block in enumerate(network):
        block.requires_grad_(active[0] <= b < active[1])
    counter = FlopCounterMode(display=False)
    with counter:
        output = network(model.example(_SAMPLES))
        if output.requires_grad:
            output.sum().backward()
    return int(counter.get_total_flops())
