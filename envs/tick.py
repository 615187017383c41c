"""One tick of many lanes: microbatch, forward, backward, telemetry and update on flat tensors. The hot path.

Everything between two decisions happens here, in one function of tensors that are updated in place, so that
``torch.compile`` can fuse it. Every lane does the same arithmetic whatever its plan: a lane that only accumulates its
gradient multiplies its update by zero. ``reference.ReferenceLoop`` is the same loop written plainly.

Two things here are for speed. The per-lane coefficients are stacked into one tensor before they meet the
``[lanes, parameters]`` arrays: inductor then computes them once per lane rather than once per vector of parameters
(measured: 1.6 times the throughput). And the two passes over the parameters, one for the norms that clipping needs and
one for the update, are each a single fused loop.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional as F

from loopwright.envs.plan import ROW
from loopwright.envs.randomness import microbatch_indices
from loopwright.envs.telemetry import SUMS
from loopwright.inner_tasks.models import ModelSpec

ADAM_EPS = 1e-8
TINY = 1e-30  # keeps a ratio of squared norms finite when both are zero


@dataclass
class LaneState:
    """All that changes while lanes train. A snapshot is a copy of one row (or column) of each tensor.

    The first six are ``[lanes, parameters]`` float32. ``scalars`` is ``[4, lanes]`` float32: microbatches
    accumulated, product of beta1, product of beta2, squared norm of the previous gradient. ``counters`` is
    ``[2, lanes]`` int64: key of the random streams, ticks done. ``sums`` is ``[len(SUMS), lanes]`` float32.
    """

    weights: torch.Tensor
    momentum: torch.Tensor
    second_moment: torch.Tensor
    gradient_sum: torch.Tensor
    average: torch.Tensor
    previous_gradient: torch.Tensor
    scalars: torch.Tensor
    counters: torch.Tensor
    sums: torch.Tensor

    @classmethod
    def empty(cls, lanes: int, parameters: int, device: torch.device) -> "LaneState":
        flat = [torch.zeros(lanes, parameters, device=device) for _ in range(6)]
        counters = torch.zeros(2, lanes, dtype=torch.int64, device=device)
        scalars = torch.zeros(4, lanes, device=device)
        scalars[1:3] = 1.0
        return cls(*flat, scalars=scalars, counters=counters, sums=torch.zeros(len(SUMS), lanes, device=device))  # type: ignore[misc]

    def tensors(self) -> list[torch.Tensor]:
        return [getattr(self, field.name) for field in fields(self)]

    def rows(self) -> list[torch.Tensor]:
        """Views of every tensor with the lane as the first axis, for copying lanes in and out."""
        return [t if i < 6 else t.T for i, t in enumerate(self.tensors())]


class Layout:
    """Where each parameter of a model lies in a lane's flat vector."""

    def __init__(self, model: torch.nn.Module) -> None:
        named = list(model.named_parameters())
        self.names = [name for name, _ in named]
        self.shapes = [parameter.shape for _, parameter in named]
        self.sizes = [parameter.numel() for _, parameter in named]
        self.parameters = sum(self.sizes)

    def split(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Views ``[lanes, *shape]`` of a flat ``[lanes, parameters]`` tensor, in the order of ``names``."""
        pieces = torch.split(flat, self.sizes, dim=1)
        return tuple(p.view(-1, *s) for p, s in zip(pieces, self.shapes, strict=True))

    def join(self, pieces: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return torch.cat([piece.flatten(1) for piece in pieces], dim=1)


def make_forward(spec: ModelSpec) -> tuple[Callable[..., torch.Tensor], Layout]:
    """``forward(parameters, inputs [N, ...]) -> logits [N, classes]`` for one lane, and the parameters' layout."""
    model = spec.build()
    layout = Layout(model)

    def forward(parameters: tuple[torch.Tensor, ...], inputs: torch.Tensor) -> torch.Tensor:
        named = dict(zip(layout.names, parameters, strict=True))
        logits: torch.Tensor = functional_call(model, named, (inputs,))
        return logits

    return forward, layout


def make_measure(spec: ModelSpec) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """``measure(weights, inputs, labels) -> (mean loss [lanes], accuracy [lanes])`` of flat ``weights``."""
    forward, layout = make_forward(spec)

    def measure(weights: torch.Tensor, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = vmap(forward)(layout.split(weights), inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(1)
        return loss, (logits.argmax(-1) == labels).float().mean(1)

    return measure


def make_tick(spec: ModelSpec, microbatch: int) -> Callable[..., None]:
    """The function ``tick(plans, inputs, labels, *state)`` for lanes of this model. It changes the state in place.

    ``plans`` is ``[len(PLAN_FIELDS), lanes]``; ``inputs`` ``[lanes, N, *input_shape]`` and ``labels`` ``[lanes, N]``
    are the training splits.
    """
    forward, layout = make_forward(spec)

    def loss_of(parameters: tuple[torch.Tensor, ...], inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(forward(parameters, inputs), labels)

    gradient_of = vmap(grad_and_value(loss_of))

    def tick(
        plans: torch.Tensor,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
        momentum: torch.Tensor,
        second_moment: torch.Tensor,
        gradient_sum: torch.Tensor,
        average: torch.Tensor,
        previous_gradient: torch.Tensor,
        scalars: torch.Tensor,
        counters: torch.Tensor,
        sums: torch.Tensor,
    ) -> None:
        lanes, population = labels.shape
        key, ticks = counters.unbind(0)
        count, beta1_product, beta2_product, previous_square = scalars.unbind(0)
        plan = {name: plans[row] for name, row in ROW.items()}

        sample = microbatch_indices(key, ticks, microbatch, population)
        row = sample + torch.arange(lanes, device=sample.device)[:, None] * population
        pieces, loss = gradient_of(layout.split(weights), inputs.flatten(0, 1)[row], labels.flatten()[row])
        fresh = layout.join(pieces)

        count = count + 1
        update = count >= plan["batch"]
        on = update.float()
        inverse = torch.stack([1 / count, on], dim=1)[:, 0:1]
        accumulated = gradient_sum + fresh
        gradient = accumulated * inverse
        fresh_square = (fresh * fresh).sum(1)
        square = (gradient * gradient).sum(1)
        momentum_square = (momentum * momentum).sum(1)
        along_previous = (gradient * previous_gradient).sum(1)
        along_momentum = (gradient * momentum).sum(1)

        shrink = torch.clamp(plan["clip"] * torch.rsqrt(square + TINY), max=1.0)
        beta1 = torch.where(update, plan["momentum"], 1.0)
        beta2 = torch.where(update, plan["second_momentum"], 1.0)
        beta1_product, beta2_product = beta1_product * beta1, beta2_product * beta2
        half_life = plan["average"]
        coefficients = torch.stack(
            [
                beta1,
                (1 - beta1) * shrink / count,
                beta2,
                (1 - beta2).sqrt() * shrink / count,
                1 / (1 - beta1_product + TINY),
                torch.rsqrt(1 - beta2_product + TINY),
                plan["learning_rate"] * on,
                plan["weight_decay"],
                torch.where(half_life > 0, 1 - torch.exp2(-count / half_life.clamp(min=TINY)), 1.0) * on,
                1 - on,
                on / count,
                plan["optimizer"],
            ],
            dim=1,
        )
        keep1, add1, keep2, add2, unbias1, unbias2, rate, decay, averaging, hold, store, adam = torch.split(
            coefficients, 1, dim=1
        )

        new_momentum = keep1 * momentum + add1 * accumulated
        rooted = add2 * accumulated
        new_second = keep2 * second_moment + rooted * rooted
        adam_step = new_momentum * unbias1 / (new_second.sqrt() * unbias2 + ADAM_EPS)
        step = rate * (torch.where(adam > 0, adam_step, new_momentum) + decay * weights)
        new_weights = weights - step
        step_square, weight_square = (step * step).sum(1), (new_weights * new_weights).sum(1)

        average.add_(averaging * (new_weights - average))
        gradient_sum.copy_(accumulated * hold)
        previous_gradient.copy_(previous_gradient * hold + accumulated * store)
        weights.copy_(new_weights)
        momentum.copy_(new_momentum)
        second_moment.copy_(new_second)
        log_norm = 0.5 * torch.log(square + TINY)
        sums.add_(
            torch.stack(
                [
                    torch.ones_like(loss),
                    loss,
                    loss * loss,
                    fresh_square,
                    on,
                    on * square,
                    on * log_norm,
                    on * log_norm * log_norm,
                    on * along_previous * torch.rsqrt(square * previous_square + TINY),
                    on * along_momentum * torch.rsqrt(square * momentum_square + TINY),
                    on * (0.5 * torch.log(momentum_square + TINY) - log_norm),
                    on * (shrink < 1),
                    on * 0.5 * torch.log((step_square + TINY) / (weight_square + TINY)),
                ]
            )
        )
        scalars.copy_(torch.stack([count * (1 - on), beta1_product, beta2_product,
                                   torch.where(update, square, previous_square)]))  # fmt: skip
        counters.copy_(torch.stack([key, ticks + 1]))

    return tick
