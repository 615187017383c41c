"""Loss and gradient statistics of one decision, summed tick by tick; shared by every way of running a loop.

A loop adds one term per tick to each of ``SUMS``; those about the gradient only when the tick ends in an update. Norms
and products run over the active blocks. ``summarise`` turns the sums into means once per decision.
"""

from dataclasses import dataclass

import torch

SUMS = (
    "ticks",
    "cost",  # geq of the tick's training
    "loss",  # mean over the microbatch, kept or not
    "loss_square",
    "microbatch_square",  # |g|^2 of the microbatch gradient
    "updates",
    "gradient_square",  # |G|^2 of the accumulated (mean) gradient, before clipping
    "gradient_dot",  # G . G of the update before, of each block the last one it took part in
    "log_gradient_norm",
    "log_gradient_norm_square",
    "gradient_cosine",  # cosine of those two
    "momentum_cosine",  # cosine of G with the momentum before the update
    "log_momentum_ratio",  # log(|momentum| / |G|)
    "turn",  # (G before - G) . d, with d the direction of the step before
    "slope",  # d . its momentum, that is |d|^2 in the metric in which the optimizer descends
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
    log_noise_scale: torch.Tensor  # log of the gradient noise scale, in batches of the size of an update's
    curvature: torch.Tensor  # along the last step, times the learning rate
    clipped_fraction: torch.Tensor
    log_step_ratio: torch.Tensor


def summarise(sums: torch.Tensor) -> Telemetry:
    """Means of one decision from the sums ``[len(SUMS), lanes]`` of its ticks.

    The gradient noise scale (McCandlish et al. 2018, section 2.2) is tr(covariance) / |mean gradient|^2. Here the
    squared mean gradient is estimated by the product of successive gradients, whose noise is independent, and the
    trace by what |G|^2 exceeds it by: so it needs no second batch size. Where successive gradients point apart there
    is no signal, and it is infinite.

    The curvature along the last step d is d.H.d / d.P.d, times the learning rate: H d by the difference of the
    gradients before and after, P the optimizer's own metric (the identity for sgd). Above 2, descent on a quadratic
    diverges. The two gradients are of different microbatches, so that noise is read as curvature as well.
    """
    s = dict(zip(SUMS, sums.unbind(0), strict=True))
    ticks, updates = s["ticks"], s["updates"]
    loss, log_norm = s["loss"] / ticks, s["log_gradient_norm"] / updates
    signal = s["gradient_dot"].clamp(min=0)

    def deviation(square: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        return (square - mean * mean).clamp(min=0).sqrt()

    return Telemetry(
        loss=loss,
        loss_std=deviation(s["loss_square"] / ticks, loss),
        updates=updates,
        log_gradient_norm=log_norm,
        log_gradient_norm_std=deviation(s["log_gradient_norm_square"] / updates, log_norm),
        gradient_cosine=s["gradient_cosine"] / updates,
        momentum_cosine=s["momentum_cosine"] / updates,
        log_momentum_ratio=s["log_momentum_ratio"] / updates,
        log_noise_ratio=0.5 * torch.log((s["microbatch_square"] / ticks) / (s["gradient_square"] / updates)),
        log_noise_scale=torch.log((s["gradient_square"] - signal).clamp(min=0) / signal),
        curvature=torch.where(s["slope"] == 0, 0.0, s["turn"] / s["slope"]),
        clipped_fraction=s["clipped"] / updates,
        log_step_ratio=s["log_step_ratio"] / updates,
    )
