"""A residual MLP on a table: 2,310 pieces of outdoor photographs, 18 measurements of each, seven classes (river)."""

import torch
from river.datasets import ImageSegments
from torch import nn

HIDDEN, BLOCKS = 256, 4


class ResidualBlock(nn.Module):
    """x plus what two linear layers make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Dropout(0.1), nn.Linear(HIDDEN, HIDDEN)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.change(x)
        return y


def load_segments() -> tuple[torch.Tensor, torch.Tensor]:
    rows = list(ImageSegments())  # type: ignore[no-untyped-call]
    inputs = torch.tensor([list(measured.values()) for measured, _ in rows], dtype=torch.float32)
    kinds = sorted({kind for _, kind in rows})
    inputs = (inputs - inputs.mean(dim=0)) / inputs.std(dim=0).clamp(min=1e-6)
    return inputs, torch.tensor([kinds.index(kind) for _, kind in rows])


def build_residual_mlp() -> nn.Module:
    """535 thousand parameters."""
    return nn.Sequential(nn.Linear(18, HIDDEN), *(ResidualBlock() for _ in range(BLOCKS)), nn.Linear(HIDDEN, 7))
