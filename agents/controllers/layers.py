"""The layers of a policy's network on arrays: for one run torch's own calls take longer than the arithmetic in them.

Several trainings in one network (``ensemble``, ``switch``) leave most of its weights 0: a layer's blocks lie on the
diagonal. Reading a megabyte of zeros takes longer than all else that a policy does for one run, so they are left out.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from loopwright.envs.loop.averages import Floats

Layer = Callable[[Floats], Floats]
SHARED = 0.5  # an input with a weight in this share of the outputs belongs to none of the blocks
WORTH = 0.5  # of the weights, at most so many, for blocks to be worth their calls


def read_layer(layer: nn.Module) -> Layer:
    """The layer as a function of an array ``[lanes, inputs]``, by ``layer`` itself if it is not one of the usual."""
    if isinstance(layer, nn.Linear):
        return _read_linear(layer.weight.detach().numpy(), layer.bias.detach().numpy())
    if isinstance(layer, nn.Tanh):
        return np.tanh
    return lambda values: layer(torch.from_numpy(values)).detach().numpy()


def _read_linear(weight: Floats, bias: Floats) -> Layer:
    shared = (weight != 0).mean(axis=0) > SHARED
    blocks = _find_blocks(np.where(shared, 0, weight))
    used = sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in blocks)
    if used + len(weight) * shared.sum() > WORTH * weight.size:
        whole = weight.T
        return lambda values: values @ whole + bias
    own = [(rows, columns, np.ascontiguousarray(weight[rows, columns]).T) for rows, columns in blocks]
    everywhere, from_shared = np.flatnonzero(shared), np.ascontiguousarray(weight[:, shared]).T

    def apply(values: Floats) -> Floats:
        found: Floats = values[:, everywhere] @ from_shared + bias
        for rows, columns, part in own:
            found[:, rows] += values[:, columns] @ part
        return found

    return apply


def _find_blocks(weight: Floats) -> list[tuple[slice, slice]]:
    """Rows and columns of the rectangles that hold all weights: successive rows that begin and end alike are one."""
    there = weight != 0
    begins = np.where(there.any(axis=1), there.argmax(axis=1), 0)
    ends = np.where(there.any(axis=1), weight.shape[1] - there[:, ::-1].argmax(axis=1), 0)
    changes = np.flatnonzero((np.diff(begins) != 0) | (np.diff(ends) != 0)) + 1
    return [
        (slice(a, b), slice(int(begins[a]), int(ends[a])))
        for a, b in pairwise([0, *changes.tolist(), len(weight)])
        if ends[a] > begins[a]
    ]
