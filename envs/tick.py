"""One tick of many lanes: microbatch, forward, backward, telemetry and update on flat tensors. The hot path.

Everything between two decisions happens here, in two functions of tensors that are updated in place, so that
``torch.compile`` can fuse them: one reads a microbatch, the other updates. Every lane does the same arithmetic whatever
its plan: a lane that only accumulates its gradient multiplies its update by zero, a frozen block is masked, and what a
plan leaves out is not charged. ``reference.ReferenceLoop`` is the same loop written plainly, where it is left out.

Two things here are for speed. The per-lane coefficients are stacked into one tensor before they meet the
``[lanes, parameters]`` arrays: inductor then computes them once per lane rather than once per vector of parameters
(measured: 1.6 times the throughput). And the two passes over the parameters, one for the norms that clipping needs and
one for the update, are each a single fused loop.
"""

from collections.abc import Callable

import torch
from torch.func import functional_call, grad_and_value, vmap

from loopwright.envs.cost import measure_cost
from loopwright.envs.lane_state import Layout
from loopwright.envs.plan import CHOICES, ROW
from loopwright.envs.randomness import candidate_indices
from loopwright.inner_tasks.losses import LossName, metric, sample_losses
from loopwright.inner_tasks.models import ModelSpec

ADAM_EPS = 1e-8
TINY = 1e-30  # keeps a ratio of squared norms finite when both are zero: norms count from 1e-15 on
JOINT, BOTTOM_UP = CHOICES["sweep"].index("joint"), CHOICES["sweep"].index("bottom-up")
SHUFFLED = CHOICES["order"].index("shuffled")


def active_blocks(
    depth: torch.Tensor, sweep: torch.Tensor, updates: torch.Tensor, blocks: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """First active block and the one after the last, each ``[lanes]`` int64, of the update after ``updates``."""
    length = (depth * blocks).round().clamp(1, blocks).long()
    first, turn = blocks - length, updates % length
    swept = torch.where(sweep == BOTTOM_UP, first + turn, blocks - 1 - turn)
    joint = sweep == JOINT
    low = torch.where(joint, first, swept)
    return low, torch.where(joint, blocks, low + 1)


def kept_samples(keep: torch.Tensor, microbatch: int) -> torch.Tensor:
    """How many samples of a microbatch are back-propagated, ``[lanes]``."""
    return (keep * microbatch).round().clamp(1, microbatch)


def make_forward(spec: ModelSpec) -> tuple[Callable[..., torch.Tensor], Layout]:
    """``forward(parameters, inputs [N, ...]) -> outputs [N, ...]`` for one lane, and the parameters' layout."""
    model = spec.build()
    layout = Layout(model)

    def forward(parameters: tuple[torch.Tensor, ...], inputs: torch.Tensor) -> torch.Tensor:
        named = dict(zip(layout.names, parameters, strict=True))
        outputs: torch.Tensor = functional_call(model, named, (inputs,))
        return outputs

    return forward, layout


def make_measure(spec: ModelSpec, loss: LossName) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """``measure(weights, inputs, labels) -> (mean loss [lanes], metric [lanes])`` of flat ``weights``."""
    forward, layout = make_forward(spec)

    def measure_one(
        parameters: tuple[torch.Tensor, ...], inputs: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = forward(parameters, inputs)
        return sample_losses(loss, outputs, labels).mean(), metric(loss, outputs, labels)

    measure_all = vmap(measure_one)

    def measure(weights: torch.Tensor, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, value = measure_all(layout.split(weights), inputs, labels)
        return mean, value

    return measure


def make_read(spec: ModelSpec, loss: LossName, microbatch: int) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """The first half of a tick, ``read(plans, inputs, labels, weights, last_loss, read, counters)``.

    ``plans`` is ``[len(PLAN_FIELDS), lanes]``; ``inputs`` ``[lanes, N, *input_shape]`` and ``labels``
    ``[lanes, N, ...]`` are the training splits. Chooses a microbatch, and returns the loss of each sample
    ``[lanes, microbatch]`` and the gradient of the kept ones ``[lanes, parameters]``.
    """
    forward, layout = make_forward(spec)
    earlier = torch.ones(microbatch, microbatch).tril(-1) > 0  # settles ties between equal losses

    def loss_of(
        parameters: tuple[torch.Tensor, ...], inputs: torch.Tensor, labels: torch.Tensor, kept: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses = sample_losses(loss, forward(parameters, inputs), labels)
        seen = losses.detach()
        before = (seen[None, :] > seen[:, None]) | ((seen[None, :] == seen[:, None]) & earlier.to(seen.device))
        chosen = (before.sum(1) < kept) / kept
        return (losses * chosen).sum(), losses

    gradient_of = vmap(grad_and_value(loss_of, has_aux=True))

    def read_microbatch(
        plans: torch.Tensor,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
        last_loss: torch.Tensor,
        read: torch.Tensor,
        counters: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        lanes, population = labels.shape[:2]
        key, ticks, cursor, uses, updates = counters.unbind(0)
        # The samples of the last tick again, or new ones, chosen among three candidates each.
        renew = uses >= plans[ROW["echo"]]
        cursor = cursor + renew
        direction = (plans[ROW["order"]] - SHUFFLED)[:, None]
        best, best_score = None, None
        for candidate in candidate_indices(key, cursor, microbatch, population):
            seen = last_loss.gather(1, candidate)
            score = torch.where(seen == torch.inf, torch.inf, seen * direction)
            if best is None or best_score is None:
                best, best_score = candidate, score
            else:
                better = (direction != 0) & (score > best_score)
                best, best_score = torch.where(better, candidate, best), torch.where(better, score, best_score)
        assert best is not None
        sample = torch.where(renew[:, None], best, read)
        row = sample + torch.arange(lanes, device=sample.device)[:, None] * population
        kept = kept_samples(plans[ROW["keep"]], microbatch)
        gradient, (_, losses) = gradient_of(
            layout.split(weights), inputs.flatten(0, 1)[row], labels.flatten(0, 1)[row], kept
        )
        read.copy_(sample)
        counters.copy_(torch.stack([key, ticks + 1, cursor, torch.where(renew, 0, uses) + 1, updates]))
        return losses, layout.join(gradient)

    return read_microbatch


def make_update(spec: ModelSpec, microbatch: int) -> Callable[..., None]:
    """The second half of a tick: accumulate the gradient, and where that completes a batch, update.

    ``update(plans, losses, fresh, weights, momentum, second_moment, gradient_sum, average, previous_gradient, scalars,
    counters, sums)``, with the losses and the gradient of the first half, changes the rest of the state in place.
    """
    layout, cost = Layout(spec.build()), measure_cost(spec)
    path_cost, single_cost = torch.tensor(cost.path), torch.tensor(cost.single)

    def update_lanes(
        plans: torch.Tensor,
        losses: torch.Tensor,
        fresh: torch.Tensor,
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
        key, ticks, cursor, uses, updates = counters.unbind(0)
        loss = losses.mean(1)
        count, products1, products2 = scalars[0], scalars[1 : 1 + layout.blocks], scalars[1 + layout.blocks :]
        plan = {name: plans[row] for name, row in ROW.items()}

        low, high = active_blocks(plan["depth"], plan["sweep"], updates, layout.blocks)
        kept = kept_samples(plan["keep"], microbatch)
        per_sample = torch.where(plan["sweep"] == JOINT, path_cost.to(low.device)[low], single_cost.to(low.device)[low])
        geq = kept * per_sample + torch.where(kept < microbatch, cost.forward * microbatch, 0.0)

        count = count + 1
        update = count >= plan["batch"]
        on = update.to(weights.dtype)
        block = torch.arange(layout.blocks, device=low.device)
        block_active = (block >= low[:, None]) & (block < high[:, None])
        beta1 = torch.where(update, plan["momentum"], 1.0)
        beta2 = torch.where(update, plan["second_momentum"], 1.0)
        rate = plan["learning_rate"] * on
        next_products1 = torch.where(block_active.T, products1 * beta1, products1)
        next_products2 = torch.where(block_active.T, products2 * beta2, products2)
        unbias1 = torch.where(plan["optimizer"] > 0, 1 / (1 - next_products1 + TINY), 1.0)
        per_block = [
            block_active.to(weights.dtype),
            torch.where(block_active, (rate * unbias1).T, 0.0),
            torch.rsqrt(1 - next_products2 + TINY).T,
        ]
        columns = [1 / count, plan["optimizer"], *(column for part in per_block for column in part.unbind(1))]
        first = torch.stack(columns, dim=1)
        inverse, adam, active, rate1, unbias2 = torch.split(first, [1, 1, *[layout.blocks] * 3], dim=1)
        active, rate1, unbias2 = layout.spread(active), layout.spread(rate1), layout.spread(unbias2)

        # Chosen, not multiplied: what a frozen block holds may have overflowed, and infinity times 0 is not 0.
        fresh, gathered, own_momentum, before = (
            torch.where(active > 0, own, 0.0) for own in (fresh, gradient_sum, momentum, previous_gradient)
        )
        accumulated = gathered + fresh
        gradient = accumulated * inverse
        last_direction = own_momentum / torch.where(adam > 0, second_moment.sqrt() + ADAM_EPS, 1.0)
        fresh_square = (fresh * fresh).sum(1)
        square = (gradient * gradient).sum(1)
        momentum_square = (own_momentum * own_momentum).sum(1)
        before_square = (before * before).sum(1)
        along_before = (gradient * before).sum(1)
        along_momentum = (gradient * own_momentum).sum(1)
        turn = ((before - gradient) * last_direction).sum(1)
        slope = (own_momentum * last_direction).sum(1)
        # The bias of the second moment cancels in turn / slope, that of the first is left (the same for every block
        # but those that joined the path lately).
        bias1 = 1 - products1.gather(0, (high - 1)[None])[0]
        slope = torch.where((plan["optimizer"] > 0) & (bias1 > 0), slope / bias1.clamp(min=TINY), slope)

        inverse_norm = torch.rsqrt(square + TINY)
        shrink = torch.where(plan["clip"] == torch.inf, 1.0, torch.clamp(plan["clip"] * inverse_norm, max=1.0))
        half_life = plan["average"]
        coefficients = torch.stack(
            [
                1 - beta1,
                (1 - beta1) * shrink / count,
                1 - beta2,
                (1 - beta2).sqrt() * shrink / count,
                rate * plan["weight_decay"],
                torch.where(half_life > 0, 1 - torch.exp2(-count / half_life.clamp(min=TINY)), 1.0) * on,
                on,
                on / count,
                plan["optimizer"],
            ],
            dim=1,
        )
        fade1, add1, fade2, add2, decay, averaging, updating, store, adam = torch.split(coefficients, 1, dim=1)

        new_momentum = momentum * (1 - active * fade1) + add1 * accumulated
        rooted = add2 * accumulated
        new_second = second_moment * (1 - active * fade2) + rooted * rooted
        scale = torch.where(adam > 0, new_second.sqrt() * unbias2 + ADAM_EPS, 1.0)
        step = rate1 * new_momentum / scale + active * decay * weights
        new_weights = weights - step
        step_square = (step * step).sum(1)
        weight_square = (new_weights * new_weights * active).sum(1)

        average.add_(averaging * (new_weights - average))
        gradient_sum.copy_(accumulated * (1 - updating))
        previous_gradient.copy_(previous_gradient * (1 - active * updating) + accumulated * store)
        weights.copy_(new_weights)
        momentum.copy_(new_momentum)
        second_moment.copy_(new_second)
        log_norm = 0.5 * torch.log(square + TINY)
        sums.add_(
            torch.stack(
                [
                    torch.ones_like(loss),
                    geq,
                    loss,
                    loss * loss,
                    fresh_square,
                    on,
                    on * square,
                    on * along_before,
                    on * log_norm,
                    on * log_norm * log_norm,
                    on * along_before * inverse_norm * torch.rsqrt(before_square + TINY),
                    on * along_momentum * inverse_norm * torch.rsqrt(momentum_square + TINY),
                    on * (0.5 * torch.log(momentum_square + TINY) - log_norm),
                    on * turn,
                    on * slope,
                    on * (shrink < 1),
                    on * 0.5 * torch.log((step_square + TINY) / (weight_square + TINY)),
                ]
            )
        )
        scalars.copy_(torch.cat([(count * (1 - on))[None], next_products1, next_products2]))
        counters.copy_(torch.stack([key, ticks, cursor, uses, updates + update]))

    return update_lanes
