"""geq, the unit of cost: the measured FLOPs of a full forward and backward pass on one sample of a task = 1."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from loopwright.inner_tasks.models import ModelSpec


@dataclass(frozen=True)
class Cost:
    """What things cost for one model. ``flops`` is what 1 geq stands for; ``forward`` is a forward pass in geq."""

    flops: float
    forward: float

    def training(self, samples: int) -> float:
        """Forward and backward over ``samples``, in geq."""
        return float(samples)

    def look(self, samples: int) -> float:
        """A controller's look at ``samples`` of the control split: forward only, in geq."""
        return self.forward * samples


@lru_cache
def measure_cost(model: ModelSpec) -> Cost:
    """Count the FLOPs of one model's forward and backward pass; first layers need no input gradient."""
    samples = 8
    network = model.build()
    counter = FlopCounterMode(display=False)
    with counter:
        output = network(torch.zeros(samples, *model.input_shape))
        forward = counter.get_total_flops()
        output.sum().backward()
    total = counter.get_total_flops()
    return Cost(flops=total / samples, forward=forward / total)
