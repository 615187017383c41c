"""Small networks for inner tasks, described by a frozen spec and built as an ordered ``nn.Sequential`` of blocks.

A spec is data: two tasks whose specs compare equal have the same parameters in the same order, which is what lets
many of them run side by side as lanes of one batch. Blocks run from input to output.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, runtime_checkable

from torch import nn

Activation = Literal["relu", "tanh", "gelu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


@runtime_checkable
class ModelSpec(Protocol):
    """A hashable description of a network without batch-norm state."""

    def __hash__(self) -> int: ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample, without the batch axis."""
        ...

    def build(self) -> nn.Sequential:
        """A freshly initialised network, drawn from torch's global generator: input ``[N, *input_shape]``."""
        ...


@dataclass(frozen=True)
class MLP:
    """Fully connected classifier: ``inputs -> hidden[0] -> ... -> outputs`` logits."""

    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    activation: Activation = "relu"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.inputs,)

    def build(self) -> nn.Sequential:
        widths = (self.inputs, *self.hidden)
        blocks: list[nn.Module] = [
            nn.Sequential(nn.Linear(a, b), _ACTIVATIONS[self.activation]()) for a, b in pairwise(widths)
        ]
        return nn.Sequential(*blocks, nn.Linear(widths[-1], self.outputs))


@dataclass(frozen=True)
class ConvNet:
    """Small convolutional classifier for one-channel images: 3x3 convolutions, each halving the resolution."""

    side: int
    channels: tuple[int, ...]
    outputs: int
    activation: Activation = "relu"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, self.side, self.side)

    def build(self) -> nn.Sequential:
        widths = (1, *self.channels)
        blocks: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), _ACTIVATIONS[self.activation]())
            for a, b in pairwise(widths)
        ]
        side = self.side
        for _ in self.channels:
            side = (side + 1) // 2
        return nn.Sequential(*blocks, nn.Sequential(nn.Flatten(), nn.Linear(widths[-1] * side * side, self.outputs)))
