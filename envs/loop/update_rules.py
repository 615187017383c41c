"""The update rules of a plan's ``optimizer``: what a step makes of a gradient. For a plain loop, and batched for many.

All share one state, an exponential average of the gradient m and one of its square v, so that a switch carries it over.
``sgd`` steps along m, ``adamw`` along m / sqrt(v). The *matrix rules* know which weights form a matrix: ``sinkgd``
brings the rows and columns of m to equal size, ``muon`` makes it orthogonal. Whatever is not a matrix they leave to
``adamw``, and their steps have about the size of its own (root mean square ``STEP_RMS``; Liu et al. 2025, section 2.2),
so that one learning rate serves the three.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch.optim.adamw import adamw

from loopwright.envs.loop.plan import LoopPlan

ADAM_EPS = 1e-8
STEP_RMS = 0.2
BALANCINGS = 2  # rounds of bringing rows and columns to equal size; five are no better, and dearer
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al. 2024, as in torch.optim.Muon
ITERATIONS = 5
LEAST = 1e-30
_SETTLED = torch.tensor(1e9)  # a number of updates after which no bias is left: the bias is in rate and epsilon


def view_matrix(shape: Sequence[int]) -> tuple[int, int] | None:
    """Rows and columns of a parameter that is a matrix; None for one that is not."""
    return (shape[0], shape[1]) if len(shape) == 2 else None


def balance(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices ``[..., m, n]`` with rows and columns scaled, in turn, to a root mean square of 1 (Scetbon et al. 2025).

    By scaling vectors: a round is two products of the squared matrix and a vector. A row or column of zeros, whose
    scale is huge but finite, stays zero. Entries below 1e-15 or so count as zeros.
    """
    rows, columns = _find_scales(matrices * matrices)
    return (matrices * rows) * columns


def _find_scales(square: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What rows ``[..., m, 1]`` and columns ``[..., 1, n]`` of a matrix are scaled by, from its square."""
    across = square.transpose(-2, -1)
    m, n = square.shape[-2:]
    rows = (square.mean(-1, keepdim=True) + LEAST).reciprocal_()  # the squares of the scaling vectors
    columns = (across @ rows).div_(m).add_(LEAST).reciprocal_()
    for _ in range(BALANCINGS - 1):
        rows = (square @ columns).div_(n).add_(LEAST).reciprocal_()
        columns = (across @ rows).div_(m).add_(LEAST).reciprocal_()
    return rows.sqrt_(), columns.sqrt_().transpose(-2, -1)


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrices to ``[..., m, n]``, nearly: singular values between about 0.7 and 1.2.

    Newton-Schulz iterations, as ``torch.optim.Muon`` makes them (Jordan et al. 2024), in the matrices' own precision.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.reshape(-1, *matrices.shape[-2:])
    x = x.transpose(-2, -1) if tall else x
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    x = x / torch.where(norm > 0, norm, 1.0)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = torch.bmm(x, x.transpose(-2, -1))
        # With the sums within the products: for small matrices these calls are what an iteration takes.
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.transpose(-2, -1) if tall else x).reshape(matrices.shape)


def _direct_sinkgd(momentum: torch.Tensor, gradient: torch.Tensor, beta1: float | torch.Tensor) -> torch.Tensor:
    return STEP_RMS * balance(momentum)


def _direct_muon(momentum: torch.Tensor, gradient: torch.Tensor, beta1: float | torch.Tensor) -> torch.Tensor:
    """With Nesterov's momentum."""
    ahead = gradient + beta1 * (momentum - gradient)
    return STEP_RMS * math.sqrt(max(momentum.shape[-2:])) * orthogonalise(ahead)


# The directions of matrices ``[..., m, n]``, from the momentum after the gradient, that gradient, and beta1.
MATRIX_RULES: dict[str, Callable[[torch.Tensor, torch.Tensor, float | torch.Tensor], torch.Tensor]] = {
    "sinkgd": _direct_sinkgd,
    "muon": _direct_muon,
}


def direct_batch(rule: str, momenta: torch.Tensor, gradients: torch.Tensor, beta1: torch.Tensor) -> torch.Tensor:
    """Directions of a batch of matrices ``[n, c, rows, columns]``, of each the same to the bit however many there are.

    A batch of one would be multiplied by another kernel, that adds up in another order: there are two of it then.
    """
    if momenta.shape[0] * momenta.shape[1] > 1:
        return MATRIX_RULES[rule](momenta, gradients, beta1)
    return MATRIX_RULES[rule](*(own.expand(2, *own.shape[1:]) for own in (momenta, gradients, beta1)))[:1]


class Parts(NamedTuple):
    """Weights and what belongs to them: lists of one length."""

    weights: list[torch.Tensor]
    gradients: list[torch.Tensor]
    momenta: list[torch.Tensor]
    second_moments: list[torch.Tensor]

    def pick(self, positions: Iterable[int]) -> "Parts":
        positions = list(positions)
        return Parts(*([each[position] for position in positions] for each in self))


def take_step(plan: LoopPlan, parts: Parts, bias1: float, bias2: float) -> None:
    """One update of the parts's weights and of their two averages by its gradients, in place.

    ``bias1`` and ``bias2`` are what the averages are biased by after it: 1 less the product of all betas.
    """
    if plan.optimizer == "adamw":
        _step_adamw(plan, parts, bias1, bias2)
    elif plan.optimizer == "sgd":
        _average(plan, parts)
        _move(plan, parts.weights, parts.momenta)
    else:
        alike: dict[tuple[int, int] | None, list[int]] = {}
        for position, weight in enumerate(parts.weights):
            alike.setdefault(view_matrix(weight.shape), []).append(position)
        for shape, positions in alike.items():
            if shape is None:
                _step_adamw(plan, parts.pick(positions), bias1, bias2)
            elif plan.optimizer == "sinkgd":
                _step_sinkgd(plan, parts.pick(positions))
            else:
                _step_matrices(plan, parts.pick(positions))


def _step_adamw(plan: LoopPlan, parts: Parts, bias1: float, bias2: float) -> None:
    """Loshchilov & Hutter 2019, algorithm 2, by torch's fused kernel.

    It corrects biases by powers of the betas, which here may have changed: so it is told that there are none, and what
    they come to is in the learning rate and epsilon.
    """
    ratio = bias2**0.5 / bias1
    adamw(
        *parts, [], [_SETTLED] * len(parts.weights), fused=True, amsgrad=False, maximize=False,
        beta1=plan.momentum, beta2=plan.second_momentum, lr=plan.learning_rate * ratio,
        weight_decay=plan.weight_decay / ratio, eps=ADAM_EPS * bias2**0.5,
    )  # fmt: skip


def _average(plan: LoopPlan, parts: Parts) -> None:
    torch._foreach_lerp_(parts.momenta, parts.gradients, 1 - plan.momentum)
    torch._foreach_mul_(parts.second_moments, plan.second_momentum)
    torch._foreach_addcmul_(parts.second_moments, parts.gradients, parts.gradients, 1 - plan.second_momentum)


def _move(plan: LoopPlan, weights: list[torch.Tensor], directions: list[torch.Tensor]) -> None:
    _decay(plan, weights)
    torch._foreach_add_(weights, directions, alpha=-plan.learning_rate)


def _decay(plan: LoopPlan, weights: list[torch.Tensor]) -> None:
    if plan.weight_decay:
        torch._foreach_mul_(weights, 1 - plan.learning_rate * plan.weight_decay)


def _step_sinkgd(plan: LoopPlan, parts: Parts) -> None:
    """Matrix by matrix, through one temporary: a third of the time that stacked ones take on a large net."""
    _average(plan, parts)
    _decay(plan, parts.weights)
    for weight, momentum in zip(parts.weights, parts.momenta, strict=True):
        square = momentum * momentum
        rows, columns = _find_scales(square)
        torch.mul(momentum, rows, out=square)
        weight.addcmul_(square, columns, value=-plan.learning_rate * STEP_RMS)


def _step_matrices(plan: LoopPlan, parts: Parts) -> None:
    """Matrices of one shape, stacked."""
    _average(plan, parts)
    momentum, gradient = (torch.stack(own) for own in (parts.momenta, parts.gradients))
    directions = MATRIX_RULES[plan.optimizer](momentum, gradient, plan.momentum)
    _move(plan, parts.weights, list(directions.unbind(0)))
