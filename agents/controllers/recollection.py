"""Recollection: the LSTM of a recurrent policy on arrays, and what it remembers of each run."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from loopwright.envs.loop.averages import Floats

# The hidden and the cell states, ``[2, layers, lanes, width]``; zeros at the beginning of a run.
Memory = npt.NDArray[np.float32]
LSTM_GATES = 4  # input, forget, cell, output, as torch has them


class Recollection:
    """An LSTM on arrays: for one run torch's own calls take longer than the arithmetic."""

    def __init__(self, lstm: nn.LSTM) -> None:
        self._layers, self._width = list[tuple[Floats, Floats, Floats]](), lstm.hidden_size
        weights = {name: value.detach().numpy() for name, value in lstm.named_parameters()}
        for i in range(lstm.num_layers):
            bias = weights[f"bias_ih_l{i}"] + weights[f"bias_hh_l{i}"]
            self._layers.append((weights[f"weight_ih_l{i}"].T, weights[f"weight_hh_l{i}"].T, bias))

    def begin(self, lanes: int) -> Memory:
        """What is remembered at the beginning of so many runs."""
        return np.zeros((2, len(self._layers), lanes, self._width), np.float32)

    def advance(self, observation: Floats, memory: Memory) -> Floats:
        """What the last layer gives for observations ``[lanes, features]``; ``memory`` is brought on in place."""
        values = observation
        for (own, back, bias), hidden, cell in zip(self._layers, memory[0], memory[1], strict=True):
            entering, staying, new, shown = np.split(values @ own + hidden @ back + bias, LSTM_GATES, axis=1)
            cell[:] = _squash(staying) * cell + _squash(entering) * np.tanh(new)
            hidden[:] = _squash(shown) * np.tanh(cell)
            values = hidden
        return values


def _squash(values: Floats) -> Floats:
    """The logistic function, which does not overflow so."""
    squashed: Floats = 0.5 * (1 + np.tanh(0.5 * values))
    return squashed


def copy_lstm(lstm: Any) -> nn.LSTM:
    """A plain LSTM with the weights of another. Raises ``ValueError`` for one with more to it, or less."""
    plain = nn.LSTM(lstm.input_size, lstm.hidden_size, lstm.num_layers)
    if _list_shapes(plain) != _list_shapes(lstm):
        raise ValueError(f"{lstm!r} is none with biases, one direction and no projection")
    plain.load_state_dict(lstm.state_dict())
    return plain


def _list_shapes(lstm: nn.LSTM) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in lstm.state_dict().items()}
