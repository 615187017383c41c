"""A 1-D convolutional net on 442 outlines of leaves as series of 427 points, six species (sktime)."""

import numpy as np
import torch
from sktime.datasets import load_osuleaf
from torch import nn


def load_leaves() -> tuple[torch.Tensor, torch.Tensor]:
    series, species = load_osuleaf(return_type="numpy3D")
    return torch.tensor(series, dtype=torch.float32), torch.tensor(np.unique(species, return_inverse=True)[1])


def build_series_net() -> nn.Module:
    """117 thousand parameters."""
    layers: list[nn.Module] = []
    for before, after, width in ((1, 64, 8), (64, 128, 5), (128, 128, 3), (128, 64, 3)):
        layers += [nn.Conv1d(before, after, width, stride=2, padding=width // 2), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 6))
