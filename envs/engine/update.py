"""The second half of a tick of many lanes: accumulate the gradient, and where that completes a batch, update.

A lane that only accumulates multiplies its update by zero. Two things here are for speed. The per-lane coefficients are
stacked into one tensor before they meet the ``[lanes, parameters]`` arrays: inductor then computes them once per lane
rather than once per vector of parameters (measured: 1.6 times the throughput). And the two passes over the parameters,
one for the norms that clipping needs and one for the update, are each a single fused loop.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from loopwright.envs.engine.cost import measure_cost
from loopwright.envs.engine.lane_state import LaneState, Layout
from loopwright.envs.engine.tick import count_kept
from loopwright.envs.loop.plan import ADAMW, CHOICES, ROW
from loopwright.envs.loop.update_rules import ADAM_EPS
from loopwright.inner_tasks.models import ModelSpec

TINY = 1e-30  # keeps a ratio of squared norms finite when both are zero: norms count from 1e-15 on
JOINT, BOTTOM_UP = CHOICES["sweep"].index("joint"), CHOICES["sweep"].index("bottom-up")
Plan = dict[str, torch.Tensor]  # the fields of the plans, each [lanes]


def find_active_blocks(
    depth: torch.Tensor, sweep: torch.Tensor, updates: torch.Tensor, blocks: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """First active block and the one after the last, each ``[lanes]`` int64, of the update after ``updates``."""
    length = (depth * blocks).round().clamp(1, blocks).long()
    first, turn = blocks - length, updates % length
    swept = torch.where(sweep == BOTTOM_UP, first + turn, blocks - 1 - turn)
    joint = sweep == JOINT
    low = torch.where(joint, first, swept)
    return low, torch.where(joint, blocks, low + 1)


def mask_blocks(low: torch.Tensor, high: torch.Tensor, blocks: int) -> torch.Tensor:
    """Whether each of the blocks is active, ``[lanes, blocks]``."""
    block = torch.arange(blocks, device=low.device)
    return (block >= low[:, None]) & (block < high[:, None])


def find_shrinkage(clip: torch.Tensor, inverse_norm: torch.Tensor) -> torch.Tensor:
    """What clipping multiplies the gradient by, ``[lanes]``."""
    return torch.where(clip == torch.inf, 1.0, torch.clamp(clip * inverse_norm, max=1.0))


class Gradient(NamedTuple):
    """What is known of the gradient before the update, on the active blocks; the norms and products ``[lanes]``."""

    accumulated: torch.Tensor  # the sum over the microbatches so far, [lanes, parameters]
    fresh_square: torch.Tensor  # |g|^2 of this microbatch
    square: torch.Tensor  # |G|^2 of the mean over microbatches
    momentum_square: torch.Tensor
    previous_square: torch.Tensor
    along_previous: torch.Tensor  # G . G of the update before
    along_momentum: torch.Tensor
    turn: torch.Tensor  # see telemetry.SUMS
    slope: torch.Tensor


class Due(NamedTuple):
    """Who updates, and what of it is the same for all parameters of a block."""

    update: torch.Tensor  # whether the batch is complete, [lanes]
    on: torch.Tensor  # the same as a number
    gathered: torch.Tensor  # microbatches accumulated, this one included
    beta1: torch.Tensor  # 1 where there is no update
    beta2: torch.Tensor
    rate: torch.Tensor  # 0 where there is no update
    products1: torch.Tensor  # of beta1 over the updates so far, [blocks, lanes]
    products2: torch.Tensor
    inverse: torch.Tensor  # 1 / count, [lanes, 1]
    adam: torch.Tensor  # whether the rule is adamw, [lanes, 1]
    by_matrix: torch.Tensor  # whether it is one of the matrix rules, [lanes, 1]
    active: torch.Tensor  # whether a parameter is in an active block, [lanes, parameters]
    unbiased_rate: torch.Tensor  # the rate over the bias of the momentum, [lanes, parameters]
    unbias2: torch.Tensor  # root of the inverse bias of the second moment, [lanes, parameters]


def make_update(spec: ModelSpec, microbatch: int) -> Callable[..., None]:
    """``update(plans, losses, fresh, directions, state)``, with losses and gradient from the first half.

    ``directions [lanes, parameters]`` are those of the matrices in lanes that are due and under a matrix rule
    (``MatrixRules``); what else is in it has no effect.
    """
    layout, cost = Layout(spec.build()), measure_cost(spec)
    path_cost, single_cost = torch.tensor(cost.path), torch.tensor(cost.single)

    def charge(plan: Plan, low: torch.Tensor) -> torch.Tensor:
        kept = count_kept(plan["keep"], microbatch)
        per_sample = torch.where(plan["sweep"] == JOINT, path_cost.to(low.device)[low], single_cost.to(low.device)[low])
        return kept * per_sample + torch.where(kept < microbatch, cost.forward * microbatch, 0.0)

    def update_lanes(
        plans: torch.Tensor, losses: torch.Tensor, fresh: torch.Tensor, directions: torch.Tensor, state: LaneState
    ) -> None:
        key, ticks, cursor, uses, updates = state.counters.unbind(0)
        loss = losses.mean(1)
        plan = {name: plans[row] for name, row in ROW.items()}
        low, high = find_active_blocks(plan["depth"], plan["sweep"], updates, layout.blocks)
        geq = charge(plan, low)
        due = _prepare(plan, low, high, state, layout)
        gradient = _measure_gradient(plan, due, fresh, high, state, layout)
        inverse_norm = torch.rsqrt(gradient.square + TINY)
        shrink = find_shrinkage(plan["clip"], inverse_norm)
        log_step_ratio = _step(plan, due, gradient, shrink, directions, layout.in_matrix.to(low.device), state)
        state.sums.add_(_sum_up(due, gradient, inverse_norm, shrink, loss, geq, log_step_ratio))
        state.scalars.copy_(torch.cat([(due.gathered * (1 - due.on))[None], due.products1, due.products2]))
        state.counters.copy_(torch.stack([key, ticks, cursor, uses, updates + due.update]))

    return update_lanes


def _prepare(plan: Plan, low: torch.Tensor, high: torch.Tensor, state: LaneState, layout: Layout) -> Due:
    """Who updates, and with which coefficients per block."""
    blocks = layout.blocks
    count, products1, products2 = state.scalars[0], state.scalars[1 : 1 + blocks], state.scalars[1 + blocks :]
    count = count + 1
    update = count >= plan["batch"]
    on = update.to(state.weights.dtype)
    block_active = mask_blocks(low, high, blocks)
    beta1 = torch.where(update, plan["momentum"], 1.0)
    beta2 = torch.where(update, plan["second_momentum"], 1.0)
    rate = plan["learning_rate"] * on
    next_products1 = torch.where(block_active.T, products1 * beta1, products1)
    next_products2 = torch.where(block_active.T, products2 * beta2, products2)
    unbias1 = torch.where(plan["optimizer"] >= ADAMW, 1 / (1 - next_products1 + TINY), 1.0)
    per_block = [
        block_active.to(state.weights.dtype),
        torch.where(block_active, (rate * unbias1).T, 0.0),
        torch.rsqrt(1 - next_products2 + TINY).T,
    ]
    columns = [
        1 / count, (plan["optimizer"] == ADAMW).to(rate.dtype), (plan["optimizer"] > ADAMW).to(rate.dtype),
        *(column for part in per_block for column in part.unbind(1)),
    ]  # fmt: skip
    stacked = torch.stack(columns, dim=1)
    inverse, adam, by_matrix, active, rate1, unbias2 = torch.split(stacked, [1, 1, 1, *[blocks] * 3], dim=1)
    return Due(
        update, on, count, beta1, beta2, rate, next_products1, next_products2, inverse, adam, by_matrix,
        layout.expand(active), layout.expand(rate1), layout.expand(unbias2),
    )  # fmt: skip


def _measure_gradient(
    plan: Plan, due: Due, fresh: torch.Tensor, high: torch.Tensor, state: LaneState, layout: Layout
) -> Gradient:
    """The first pass over the parameters: norms and products.

    Of a matrix rule the direction of the last step is not kept, and the momentum stands for it, as with sgd.
    """
    # Chosen, not multiplied: what a frozen block holds may have overflowed, and infinity times 0 is not 0.
    fresh, gathered, momentum, previous = (
        torch.where(due.active > 0, own, 0.0)
        for own in (fresh, state.gradient_sum, state.momentum, state.previous_gradient)
    )
    accumulated = gathered + fresh
    gradient = accumulated * due.inverse
    last_direction = momentum / torch.where(due.adam > 0, state.second_moment.sqrt() + ADAM_EPS, 1.0)
    fresh_square = (fresh * fresh).sum(1)
    square = (gradient * gradient).sum(1)
    momentum_square = (momentum * momentum).sum(1)
    previous_square = (previous * previous).sum(1)
    along_previous = (gradient * previous).sum(1)
    along_momentum = (gradient * momentum).sum(1)
    turn = ((previous - gradient) * last_direction).sum(1)
    slope = (momentum * last_direction).sum(1)
    # The bias of the second moment cancels in turn / slope, that of the first is left (the same for every block
    # but those that joined the path lately).
    bias1 = 1 - state.scalars[1 : 1 + layout.blocks].gather(0, (high - 1)[None])[0]
    slope = torch.where((plan["optimizer"] == ADAMW) & (bias1 > 0), slope / bias1.clamp(min=TINY), slope)
    return Gradient(
        accumulated, fresh_square, square, momentum_square, previous_square, along_previous, along_momentum, turn, slope
    )


def _step(
    plan: Plan,
    due: Due,
    gradient: Gradient,
    shrink: torch.Tensor,
    directions: torch.Tensor,
    in_matrix: torch.Tensor,
    state: LaneState,
) -> torch.Tensor:
    """The second pass over the parameters: moves them and their moments; log(|step| / |weights|), ``[lanes]``."""
    half_life, count, on = plan["average"], due.gathered, due.on
    coefficients = torch.stack(
        [
            1 - due.beta1,
            (1 - due.beta1) * shrink / count,
            1 - due.beta2,
            (1 - due.beta2).sqrt() * shrink / count,
            due.rate * plan["weight_decay"],
            torch.where(half_life > 0, 1 - torch.exp2(-count / half_life.clamp(min=TINY)), 1.0) * on,
            on,
            on / count,
            (plan["optimizer"] >= ADAMW).to(on.dtype),
            due.rate,
        ],
        dim=1,
    )
    fade1, add1, fade2, add2, decay, averaging, updating, store, scaled, rate = torch.split(coefficients, 1, dim=1)
    accumulated, active = gradient.accumulated, due.active
    new_momentum = state.momentum * (1 - active * fade1) + add1 * accumulated
    rooted = add2 * accumulated
    new_second = state.second_moment * (1 - active * fade2) + rooted * rooted
    scale = torch.where(scaled > 0, new_second.sqrt() * due.unbias2 + ADAM_EPS, 1.0)
    moved = due.unbiased_rate * new_momentum / scale
    moved = torch.where(in_matrix & (due.by_matrix > 0), active * rate * directions, moved)
    step = moved + active * decay * state.weights
    new_weights = state.weights - step
    step_square = (step * step).sum(1)
    weight_square = (new_weights * new_weights * active).sum(1)

    state.average.add_(averaging * (new_weights - state.average))
    state.gradient_sum.copy_(accumulated * (1 - updating))
    state.previous_gradient.copy_(state.previous_gradient * (1 - active * updating) + accumulated * store)
    state.weights.copy_(new_weights)
    state.momentum.copy_(new_momentum)
    state.second_moment.copy_(new_second)
    return 0.5 * torch.log((step_square + TINY) / (weight_square + TINY))


def _sum_up(
    due: Due,
    gradient: Gradient,
    inverse_norm: torch.Tensor,
    shrink: torch.Tensor,
    loss: torch.Tensor,
    geq: torch.Tensor,
    log_step_ratio: torch.Tensor,
) -> torch.Tensor:
    """What the tick adds to ``telemetry.SUMS``, ``[len(SUMS), lanes]``."""
    g, on = gradient, due.on
    log_norm = 0.5 * torch.log(g.square + TINY)
    return torch.stack(
        [
            torch.ones_like(loss),
            geq,
            loss,
            loss * loss,
            g.fresh_square,
            on,
            on * g.square,
            on * g.along_previous,
            on * log_norm,
            on * log_norm * log_norm,
            on * g.along_previous * inverse_norm * torch.rsqrt(g.previous_square + TINY),
            on * g.along_momentum * inverse_norm * torch.rsqrt(g.momentum_square + TINY),
            on * (0.5 * torch.log(g.momentum_square + TINY) - log_norm),
            on * g.turn,
            on * g.slope,
            on * (shrink < 1),
            on * log_step_ratio,
        ]
    )
