"""Small networks for inner tasks, described by a frozen spec and built as an ordered ``nn.Sequential`` of blocks.

A spec is data: two tasks whose specs compare equal have the same parameters in the same order, which is what lets
many of them run side by side as lanes of one batch. Blocks run from input to output; the gradient path over layers and
the order in which layers are updated are counted in blocks, so each holds at least one parameter.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

Activation = Literal["relu", "tanh", "gelu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


class ModelSpec(ABC):
    """A hashable description of a network without batch-norm state; the concrete ones are frozen dataclasses."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample, without the batch axis."""

    @property
    def vocabulary(self) -> int | None:
        """How many different tokens there are, for a model of tokens; None for a model of numbers."""
        return None

    @property
    def input_dtype(self) -> torch.dtype:
        """Of the inputs: float32, or int64 for tokens."""
        return torch.float32 if self.vocabulary is None else torch.int64

    @abstractmethod
    def construct(self) -> nn.Sequential:
        """The network, initialised from torch's global generator: input ``[N, *input_shape]``."""

    def build(self, seed: int = 0) -> nn.Sequential:
        """The network, freshly initialised from ``seed``; torch's global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach for accelerators too
            return self.construct()

    def example(self, samples: int) -> torch.Tensor:
        """Inputs of the right shape and dtype, all zero."""
        return torch.zeros(samples, *self.input_shape, dtype=self.input_dtype)


@lru_cache
def find_output_shape(spec: ModelSpec) -> tuple[int, ...]:
    """Shape of what the network makes of one sample, without the batch axis."""
    with torch.no_grad():
        return tuple(spec.build()(spec.example(2)).shape[1:])


@dataclass(frozen=True)
class MLP(ModelSpec):
    """Fully connected: ``inputs -> hidden[0] -> ... -> outputs``; with ``norm``, a layer norm before each activation.

    Without hidden layers it is a linear model, of a single block.
    """

    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    activation: Activation = "relu"
    norm: bool = False

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.inputs,)

    def construct(self) -> nn.Sequential:
        widths = (self.inputs, *self.hidden)
        blocks: list[nn.Module] = [
            nn.Sequential(nn.Linear(a, b), *([nn.LayerNorm(b)] if self.norm else []), _ACTIVATIONS[self.activation]())
            for a, b in pairwise(widths)
        ]
        return nn.Sequential(*blocks, nn.Linear(widths[-1], self.outputs))


@dataclass(frozen=True)
class ConvNet(ModelSpec):
    """Small convolutional net over one channel, read out linearly; each convolution halves the resolution.

    Over images ``[N, 1, side, side]`` the kernels are 3x3; over signals (``dimensions=1``) ``[N, 1, side]`` they are 5.
    """

    side: int
    channels: tuple[int, ...]
    outputs: int
    activation: Activation = "relu"
    dimensions: Literal[1, 2] = 2

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, *[self.side] * self.dimensions)

    def _convolution(self, channels_in: int, channels_out: int) -> nn.Module:
        if self.dimensions == 2:
            return nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1)
        return nn.Conv1d(channels_in, channels_out, 5, stride=2, padding=2)

    def construct(self) -> nn.Sequential:
        widths = (1, *self.channels)
        blocks: list[nn.Module] = [
            nn.Sequential(self._convolution(a, b), _ACTIVATIONS[self.activation]()) for a, b in pairwise(widths)
        ]
        side = self.side
        for _ in self.channels:
            side = (side + 1) // 2
        features = widths[-1] * side**self.dimensions
        return nn.Sequential(*blocks, nn.Sequential(nn.Flatten(), nn.Linear(features, self.outputs)))


class _SequenceSpec(ModelSpec):
    """What the sequence models share: ``steps`` vectors of ``inputs`` numbers, or tokens below ``inputs``."""

    steps: int
    inputs: int
    tokens: bool

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.steps,) if self.tokens else (self.steps, self.inputs)

    @property
    def vocabulary(self) -> int | None:
        return self.inputs if self.tokens else None


@dataclass(frozen=True)
class RecurrentNet(_SequenceSpec):
    """Stacked recurrent layers, read out linearly: the last state, or every one (``every_step``, a language model).

    ``cell`` is "gru" (Cho et al. 2014) or "tanh" (Elman 1990), whose gradients can explode. A block is one recurrent
    layer, unrolled over all steps, or the read-out. Inputs ``[N, steps, inputs]``, or tokens ``[N, steps]``.
    """

    steps: int
    inputs: int
    width: int
    layers: int
    outputs: int
    cell: Literal["gru", "tanh"] = "gru"
    every_step: bool = False
    tokens: bool = False

    def construct(self) -> nn.Sequential:
        widths = (self.inputs, *[self.width] * self.layers)
        layer = _GatedLayer if self.cell == "gru" else _TanhLayer
        layers = [layer(a, b, self.tokens and i == 0) for i, (a, b) in enumerate(pairwise(widths))]
        return nn.Sequential(*layers, _ReadOut(self.width, self.outputs, self.every_step))


@dataclass(frozen=True)
class Transformer(_SequenceSpec):
    """Causal pre-norm transformer (Vaswani et al. 2017), read out linearly: the last step, or every one.

    A block is the embedding, one attention-and-feed-forward layer, or the read-out. Inputs ``[N, steps, inputs]``, or
    tokens ``[N, steps]``.
    """

    steps: int
    inputs: int
    width: int
    heads: int
    layers: int
    outputs: int
    every_step: bool = False
    tokens: bool = False

    def construct(self) -> nn.Sequential:
        layers = (_AttentionLayer(self.width, self.heads) for _ in range(self.layers))
        return nn.Sequential(
            _Embedding(self.steps, self.inputs, self.width, self.tokens),
            *layers,
            nn.Sequential(nn.LayerNorm(self.width), _ReadOut(self.width, self.outputs, self.every_step)),
        )


@dataclass(frozen=True)
class Rosenbrock(ModelSpec):
    """Not a network but a landscape: Rosenbrock's valley (1960) as the sum of squares that it is.

    The weights are the point theta; the outputs are the ``2 (size - 1)`` residuals ``10 (theta[i+1] - theta[i]^2)`` and
    ``1 - theta[i]``. The input, one number near 1, multiplies theta: its noise is the noise of the gradient.
    """

    size: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1,)

    def construct(self) -> nn.Sequential:
        return nn.Sequential(nn.Sequential(nn.Linear(1, self.size, bias=False), _Valley()))


# The layers below are made of linear maps and elementwise arithmetic only: torch's own GRU and attention kernels cannot
# be batched over lanes that each have weights of their own, and neither can an embedding's gradient.


class _TokenMap(nn.Linear):
    """An embedding: the linear map of tokens ``[N, steps]``, each read as a unit vector."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        unit = (x[..., None] == torch.arange(self.in_features, device=x.device)).to(self.weight.dtype)
        return super().forward(unit)


def _input_map(inputs: int, outputs: int, tokens: bool) -> nn.Linear:
    return _TokenMap(inputs, outputs) if tokens else nn.Linear(inputs, outputs)


class _Valley(nn.Module):
    def forward(self, theta: torch.Tensor) -> torch.Tensor:
        here, following = theta[:, :-1], theta[:, 1:]
        return torch.cat([10 * (following - here**2), 1 - here], dim=1)


class _GatedLayer(nn.Module):
    """``[N, steps, inputs]`` to the hidden states ``[N, steps, width]``; the equations of ``nn.GRU``."""

    def __init__(self, inputs: int, width: int, tokens: bool) -> None:
        super().__init__()
        self.from_input = _input_map(inputs, 3 * width, tokens)
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


class _TanhLayer(nn.Module):
    """``[N, steps, inputs]`` to the hidden states ``[N, steps, width]``; the equation of ``nn.RNN``."""

    def __init__(self, inputs: int, width: int, tokens: bool) -> None:
        super().__init__()
        self.from_input = _input_map(inputs, width, tokens)
        self.from_state = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        driven = self.from_input(x)
        state = torch.zeros_like(driven[:, 0])
        states = []
        for step in range(x.shape[1]):
            state = torch.tanh(driven[:, step] + self.from_state(state))
            states.append(state)
        return torch.stack(states, dim=1)


class _ReadOut(nn.Module):
    """Outputs from the states ``[N, steps, width]``: of the last, ``[N, outputs]``, or ``[N, steps, outputs]``."""

    def __init__(self, width: int, outputs: int, every_step: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.every_step = every_step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.linear(x if self.every_step else x[:, -1])
        return outputs


class _Embedding(nn.Module):
    """Linear embedding of each step plus a learnt position."""

    def __init__(self, steps: int, inputs: int, width: int, tokens: bool) -> None:
        super().__init__()
        self.linear = _input_map(inputs, width, tokens)
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
