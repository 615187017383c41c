"""Loss and gradient statistics of one decision, summed tick by tick; shared by every way of running a loop.

A loop adds one term per tick to each of ``SUMS``; those about the gradient only when the tick ends in an update.
``summarise`` turns the sums into means once per decision.
"""

from dataclasses import dataclass

import torch

SUMS = (
    "ticks",
    "loss",
    "loss_square",
    "microbatch_square",  # |g|^2 of the microbatch gradient
    "updates",
    "gradient_square",  # |G|^2 of the accumulated (mean) gradient, before clipping
    "log_gradient_norm",
    "log_gradient_norm_square",
    "gradient_cosine",  # cosine of G with the G of the update before
    "momentum_cosine",  # cosine of G with the momentum before the update
    "log_momentum_ratio",  # log(|momentum| / |G|)
    "clipped",
    "log_step_ratio",  # log(|step| / |weights|)
)


@dataclass(frozen=True)
class Telemetry:
    """Means over one decision, each ``[lanes]``. The gradient's are NaN for a lane that made no update."""

    loss: torch.Tensor
    loss_std: torch.Tensor
    updates: torch.Tensor
    log_gradient_norm: torch.Tensor
    log_gradient_norm_std: torch.Tensor
    gradient_cosine: torch.Tensor
    momentum_cosine: torch.Tensor
    log_momentum_ratio: torch.Tensor
    log_noise_ratio: torch.Tensor  # 0.5 log(mean |g|^2 / mean |G|^2): how much accumulating shrinks the gradient
    clipped_fraction: torch.Tensor
    log_step_ratio: torch.Tensor


def summarise(sums: torch.Tensor) -> Telemetry:
    """Means of one decision from the sums ``[len(SUMS), lanes]`` of its ticks."""
    s = dict(zip(SUMS, sums.unbind(0), strict=True))
    ticks, updates = s["ticks"], s["updates"]
    loss, log_norm = s["loss"] / ticks, s["log_gradient_norm"] / updates

    def spread(square: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        return (square - mean * mean).clamp(min=0).sqrt()

    return Telemetry(
        loss=loss,
        loss_std=spread(s["loss_square"] / ticks, loss),
        updates=updates,
        log_gradient_norm=log_norm,
        log_gradient_norm_std=spread(s["log_gradient_norm_square"] / updates, log_norm),
        gradient_cosine=s["gradient_cosine"] / updates,
        momentum_cosine=s["momentum_cosine"] / updates,
        log_momentum_ratio=s["log_momentum_ratio"] / updates,
        log_noise_ratio=0.5 * torch.log((s["microbatch_square"] / ticks) / (s["gradient_square"] / updates)),
        clipped_fraction=s["clipped"] / updates,
        log_step_ratio=s["log_step_ratio"] / updates,
    )
