"""What a task minimises, and the figure it is judged by in words: per sample, so that samples can be chosen by loss.

| loss | outputs | labels | metric |
|---|---|---|---|
| "cross-entropy" | logits `[N, ..., classes]` | int64 `[N, ...]`, one per sample or one per step | accuracy |
| "squared-error" | `[N, ...]` | float32 `[N, ...]` | R2, the share of the labels' variance explained |

Cross-entropy is in nats. Over several steps or outputs, a sample's loss is the mean.
"""

from typing import Literal

import torch
from torch.nn import functional as F

LossName = Literal["cross-entropy", "squared-error"]
METRICS: dict[LossName, str] = {"cross-entropy": "accuracy", "squared-error": "R2"}


def compute_losses(loss: LossName, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of each sample, ``[N]``."""
    if loss == "cross-entropy":
        each = F.cross_entropy(outputs.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
    else:
        each = (outputs - labels) ** 2
    return each if each.dim() == 1 else each.flatten(1).mean(1)


def compute_mean_loss(loss: LossName, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean of ``compute_losses``, a scalar, in one operation."""
    if loss == "cross-entropy":
        return F.cross_entropy(outputs.flatten(0, -2), labels.flatten())
    return F.mse_loss(outputs, labels)


def compute_metric(loss: LossName, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The metric over all samples, a scalar; higher is better, 1 is the most."""
    if loss == "cross-entropy":
        return (outputs.argmax(-1) == labels).to(outputs.dtype).mean()
    unexplained = ((outputs - labels) ** 2).sum()
    return 1 - unexplained / ((labels - labels.mean(0)) ** 2).sum()


def compute_guessing_loss(loss: LossName, labels: torch.Tensor) -> float:
    """The loss of the best constant guess: the entropy of the labels' frequencies, or their variance."""
    if loss == "cross-entropy":
        share = labels.flatten().bincount() / labels.numel()
        return float(-(share * share.clamp(min=1e-12).log()).sum())
    return float(labels.var(dim=0, unbiased=False).mean())
