"""What runs in lanes can be brought back to: stored copies of their state."""

import math

import numpy as np
import torch

from loopwright.envs.engine.lanes import Lanes
from loopwright.envs.loop.averages import Floats, Mask


class LaneSnapshots:
    """One stored state for each run of ``lanes``."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes, self._stored = lanes, lanes.empty_state()

    def save(self, chosen: Mask) -> None:
        """Store the present state of the lanes ``chosen``, a mask ``[lanes]``."""
        if chosen.any():
            index = torch.from_numpy(np.flatnonzero(chosen))
            self._stored.copy_lanes(index, self._lanes.state, index)

    def restore(self, chosen: Mask) -> None:
        """Bring the lanes ``chosen`` back to what was stored for them."""
        if chosen.any():
            index = torch.from_numpy(np.flatnonzero(chosen))
            self._lanes.state.copy_lanes(index, self._stored, index)


class BestStates:
    """The state at which each run had its lowest loss."""

    def __init__(self, lanes: Lanes) -> None:
        self._states = LaneSnapshots(lanes)
        self._loss = np.full(lanes.lanes, math.inf, np.float32)  # at which those were taken

    def begin(self, index: torch.Tensor, loss: Floats) -> None:
        """A new run in the lanes ``index``: its state before training, of this ``loss``, is the best so far.

        Infinity where the loss is not known: what comes after the first decision then takes its place.
        """
        begun = np.zeros(len(self._loss), bool)
        begun[index.numpy()] = True
        self._loss[index.numpy()] = loss
        self._states.save(begun)

    def keep(self, loss: Floats, fine: Mask) -> None:
        """Store the states of runs that are ``fine`` and whose ``loss`` is lower than ever; both ``[lanes]``."""
        better = fine & (loss < self._loss)
        self._loss[better] = loss[better]
        self._states.save(better)

    def restore(self, chosen: torch.Tensor) -> None:
        """Bring the runs ``chosen``, a mask, back."""
        self._states.restore(chosen.numpy())
