"""Small networks for inner tasks, described by a frozen spec and built as an ordered ``nn.Sequential`` of blocks.

A spec is data: two tasks whose specs compare equal have the same parameters in the same order, which is what lets
many of them run side by side as lanes of one batch. Blocks run from input to output; the gradient path over layers and
the order in which layers are updated are counted in blocks, so each holds at least one parameter.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, runtime_checkable

import torch
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


@dataclass(frozen=True)
class RecurrentNet:
    """Sequence classifier: stacked gated recurrent layers (Cho et al. 2014), the last state read out linearly.

    A block is one recurrent layer, unrolled over all steps, or the read-out. Inputs ``[N, steps, inputs]``.
    """

    steps: int
    inputs: int
    width: int
    layers: int
    outputs: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.steps, self.inputs)

    def build(self) -> nn.Sequential:
        widths = (self.inputs, *[self.width] * self.layers)
        return nn.Sequential(*(_GatedLayer(a, b) for a, b in pairwise(widths)), _LastStep(self.width, self.outputs))


@dataclass(frozen=True)
class Transformer:
    """Sequence classifier: causal pre-norm transformer (Vaswani et al. 2017), the last step read out linearly.

    A block is the embedding, one attention-and-feed-forward layer, or the read-out. Inputs ``[N, steps, inputs]``.
    """

    steps: int
    inputs: int
    width: int
    heads: int
    layers: int
    outputs: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.steps, self.inputs)

    def build(self) -> nn.Sequential:
        layers = (_AttentionLayer(self.width, self.heads) for _ in range(self.layers))
        return nn.Sequential(
            _Embedding(self.steps, self.inputs, self.width),
            *layers,
            nn.Sequential(nn.LayerNorm(self.width), _LastStep(self.width, self.outputs)),
        )


# The layers below are made of linear maps and elementwise arithmetic only: torch's own GRU and attention kernels cannot
# be batched over lanes that each have weights of their own.


class _GatedLayer(nn.Module):
    """``[N, steps, inputs]`` to the hidden states ``[N, steps, width]``; the equations of ``nn.GRU``."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.from_input = nn.Linear(inputs, 3 * width)
        self.from_state = nn.Linear(width, 3 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        driven = self.from_input(x)
        state = torch.zeros_like(driven[:, 0, : self.from_state.in_features])
        states = []
        for step in range(x.shape[1]):
            reset, update, fresh = driven[:, step].chunk(3, dim=-1)
            own_reset, own_update, own_fresh = self.from_state(state).chunk(3, dim=-1)
            update = torch.sigmoid(update + own_update)
            candidate = torch.tanh(fresh + torch.sigmoid(reset + own_reset) * own_fresh)
            state = candidate + update * (state - candidate)
            states.append(state)
        return torch.stack(states, dim=1)


class _LastStep(nn.Module):
    """Logits ``[N, outputs]`` from the last of the states ``[N, steps, width]``."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(x[:, -1])
        return logits


class _Embedding(nn.Module):
    """Linear embedding of each step plus a learnt position."""

    def __init__(self, steps: int, inputs: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        self.position = nn.Parameter(0.1 * torch.randn(steps, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.linear(x) + self.position
        return embedded


class _AttentionLayer(nn.Module):
    """Causal self-attention and a feed-forward net, each behind a layer norm and around a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projections, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        samples, steps, width = x.shape
        projected = self.projections(self.before_attention(x)).view(samples, steps, 3, self.heads, -1)
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(-2, -1) / math.sqrt(width / self.heads)
        future = torch.ones(steps, steps, dtype=torch.bool, device=x.device).triu(1)
        attended = scores.masked_fill(future, -math.inf).softmax(dim=-1) @ value
        x = x + self.mix(attended.transpose(1, 2).reshape(samples, steps, width))
        transformed: torch.Tensor = x + self.feed_forward(self.before_feed_forward(x))
        return transformed
