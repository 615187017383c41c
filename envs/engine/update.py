"""The second half of a tick of many lanes: accumulate the gradient, and where that completes a batch, update.

A lane that only accumulates multiplies its update by zero. Three things here are for speed. The per-lane coefficients
are stacked into one tensor before they meet the ``[lanes, parameters]`` arrays: inductor then computes them once per
lane rather than once per vector of parameters (measured: 1.6 times the throughput). The two passes over the parameters,
one for the norms that clipping needs and one for the update, are each a single fused loop. And what no lane asks for is
left out: there is an update for each ``Scope`` of the plans, with the window's measurements and without.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from loopwright.envs.engine.cost import measure_cost
from loopwright.envs.engine.lane_state import COUNTERS, LaneState, Layout
from loopwright.envs.engine.scope import BOTTOM_UP, JOINT, Scope
from loopwright.envs.engine.tick import count_kept
from loopwright.envs.loop.plan import ADAMW, ROW
from loopwright.envs.loop.telemetry import PROBE, TINY
from loopwright.envs.loop.update_rules import ADAM_EPS
from loopwright.inner_tasks.models import ModelSpec

Plan = dict[str, torch.Tensor]  # the fields of the plans, each [lanes]


class Window(NamedTuple):
    """What is kept of the updates in a window. Nothing of it outlives the window."""

    gradient: torch.Tensor  # of the last update, [lanes, parameters]
    weights: torch.Tensor  # before it
    seen: torch.Tensor  # 1 where there was one, [lanes]


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
    by_matrix: torch.Tensor  # whether the rule is one of the matrix rules, [lanes, 1]
    active: torch.Tensor | None  # whether a parameter is in an active block, [lanes, parameters]; None: all are
    unbiased_rate: torch.Tensor  # the rate over the bias of the momentum, [lanes, parameters or 1]
    unbias2: torch.Tensor  # root of the inverse bias of the second moment, [lanes, parameters or 1]


def make_mask(spec: ModelSpec) -> Callable[..., torch.Tensor]:
    """``mask(plans, fresh, state)``: the gradient of the active blocks. What the others had gathered is forgotten.

    By itself, so that the sums of the update are added up in the same order in every scope.
    """
    layout = Layout(spec.build())

    def mask_path(plans: torch.Tensor, fresh: torch.Tensor, state: LaneState) -> torch.Tensor:
        updates = state.counters[COUNTERS.index("updates")]
        low, high = find_active_blocks(plans[ROW["depth"]], plans[ROW["sweep"]], updates, layout.blocks)
        active = layout.expand(mask_blocks(low, high, layout.blocks).to(fresh.dtype))
        # Chosen, not multiplied: what a frozen block holds may have overflowed, and infinity times 0 is not 0.
        state.gradient_sum.copy_(torch.where(active > 0, state.gradient_sum, 0.0))
        return torch.where(active > 0, fresh, 0.0)

    return mask_path


def make_update(spec: ModelSpec, microbatch: int, scope: Scope, probe: bool) -> Callable[..., torch.Tensor | None]:
    """``update(plans, losses, fresh, directions, window, state)``, with losses and gradient from the first half, which
    in the whole scope is that of ``make_mask``.

    ``directions [lanes, parameters]`` are those of the matrices in lanes that are due and under a matrix rule
    (``MatrixRules``); what else is in it has no effect. With ``probe`` it returns what the window measures of this
    update, ``[len(PROBE), lanes]``.
    """
    layout, cost = Layout(spec.build()), measure_cost(spec)
    path_cost, single_cost = torch.tensor(cost.path), torch.tensor(cost.single)

    def charge(plan: Plan, low: torch.Tensor) -> torch.Tensor:
        kept = count_kept(plan["keep"], microbatch)
        per_sample = torch.where(plan["sweep"] == JOINT, path_cost.to(low.device)[low], single_cost.to(low.device)[low])
        return kept * per_sample + torch.where(kept < microbatch, cost.forward * microbatch, 0.0)

    def update_lanes(
        plans: torch.Tensor,
        losses: torch.Tensor,
        fresh: torch.Tensor,
        directions: torch.Tensor,
        window: Window,
        state: LaneState,
    ) -> torch.Tensor | None:
        key, ticks, cursor, uses, updates = state.counters.unbind(0)
        loss = losses.mean(1)
        plan = {name: plans[row] for name, row in ROW.items()}
        if scope is Scope.WHOLE:
            low, high = find_active_blocks(plan["depth"], plan["sweep"], updates, layout.blocks)
            due, geq = _prepare(plan, state, layout, mask_blocks(low, high, layout.blocks)), charge(plan, low)
        else:
            due, geq = _prepare(plan, state, layout, None), torch.full_like(loss, microbatch * cost.path[0])
        accumulated = fresh if scope is Scope.LEAN else state.gradient_sum + fresh
        gradient = accumulated * due.inverse
        square = (gradient * gradient).sum(1)
        measured = _probe(due, gradient, square, window, state) if probe else None
        shrink = find_shrinkage(plan["clip"], torch.rsqrt(square + TINY))
        in_matrix = None if scope is Scope.LEAN else layout.in_matrix.to(fresh.device)
        _step(plan, due, accumulated, shrink, directions, in_matrix, state)
        state.sums.add_(torch.stack([torch.ones_like(loss), geq, loss, loss * loss, due.on]))
        state.scalars.copy_(torch.cat([(due.gathered * (1 - due.on))[None], due.products1, due.products2]))
        state.counters.copy_(torch.stack([key, ticks, cursor, uses, updates + due.update]))
        return measured

    return update_lanes


def _prepare(plan: Plan, state: LaneState, layout: Layout, block_active: torch.Tensor | None) -> Due:
    """Who updates, and with which coefficients: per block, or where no block is left out per lane."""
    blocks = layout.blocks
    count, products1, products2 = state.scalars[0], state.scalars[1 : 1 + blocks], state.scalars[1 + blocks :]
    count = count + 1
    update = count >= plan["batch"]
    on = update.to(state.weights.dtype)
    beta1 = torch.where(update, plan["momentum"], 1.0)
    beta2 = torch.where(update, plan["second_momentum"], 1.0)
    rate = plan["learning_rate"] * on
    next1, next2 = products1 * beta1, products2 * beta2
    if block_active is not None:
        next1, next2 = torch.where(block_active.T, next1, products1), torch.where(block_active.T, next2, products2)
    unbias1 = torch.where(plan["optimizer"] >= ADAMW, 1 / (1 - next1 + TINY), 1.0)
    rates, unbias2 = (rate * unbias1).T, torch.rsqrt(1 - next2 + TINY).T
    if block_active is None:
        per_block = [rates[:, :1], unbias2[:, :1]]
    else:
        per_block = [torch.where(block_active, rates, 0.0), unbias2, block_active.to(rate.dtype)]
    columns = [1 / count, (plan["optimizer"] > ADAMW).to(rate.dtype),
               *(column for part in per_block for column in part.unbind(1))]  # fmt: skip
    stacked = torch.stack(columns, dim=1)
    inverse, by_matrix, *spread = torch.split(stacked, [1, 1, *(part.shape[1] for part in per_block)], dim=1)
    if block_active is not None:
        spread = [layout.expand(own) for own in spread]
    active = spread[2] if len(spread) > 2 else None
    return Due(
        update, on, count, beta1, beta2, rate, next1, next2, inverse, by_matrix, active, spread[0], spread[1]
    )  # fmt: skip


def _probe(due: Due, gradient: torch.Tensor, square: torch.Tensor, window: Window, state: LaneState) -> torch.Tensor:
    """The products of ``telemetry.PROBE``, and what the next update of the window needs for its own."""
    update, pair = due.update, due.update & (window.seen > 0)
    momentum, weights, previous = state.momentum, state.weights, window.gradient
    step = weights - window.weights
    alone = [square, (momentum * momentum).sum(1), (weights * weights).sum(1), (gradient * momentum).sum(1)]
    paired = [(previous * previous).sum(1), (step * step).sum(1), (gradient * previous).sum(1),
              (gradient * step).sum(1), (previous * step).sum(1), (momentum * step).sum(1)]  # fmt: skip
    measured = torch.stack(
        [
            due.on,
            pair.to(due.on.dtype),
            *(torch.where(update, own, 0.0) for own in alone),
            *(torch.where(pair, own, 0.0) for own in paired),
        ]
    )
    assert len(measured) == len(PROBE)
    window.gradient.copy_(torch.where(update[:, None], gradient, previous))
    window.weights.copy_(torch.where(update[:, None], weights, window.weights))
    window.seen.copy_(torch.maximum(window.seen, due.on))
    return measured


def _step(
    plan: Plan,
    due: Due,
    accumulated: torch.Tensor,
    shrink: torch.Tensor,
    directions: torch.Tensor,
    in_matrix: torch.Tensor | None,
    state: LaneState,
) -> None:
    """The second pass over the parameters: moves them and their moments. Without ``in_matrix`` no rule is a matrix's,
    and no gradient is gathered."""
    half_life, count, on = plan["average"], due.gathered, due.on
    coefficients = torch.stack(
        [
            1 - due.beta1,
            (1 - due.beta1) * shrink / count,
            1 - due.beta2,
            (1 - due.beta2).sqrt() * shrink / count,
            due.rate * plan["weight_decay"],
            torch.where(half_life > 0, 1 - torch.exp2(-count / half_life.clamp(min=TINY)), 1.0) * on,
            1 - on,
            (plan["optimizer"] >= ADAMW).to(on.dtype),
            due.rate,
        ],
        dim=1,
    )
    fade1, add1, fade2, add2, decay, averaging, gathering, scaled, rate = torch.split(coefficients, 1, dim=1)
    active = 1.0 if due.active is None else due.active
    new_momentum = state.momentum * (1 - active * fade1) + add1 * accumulated
    rooted = add2 * accumulated
    new_second = state.second_moment * (1 - active * fade2) + rooted * rooted
    scale = torch.where(scaled > 0, new_second.sqrt() * due.unbias2 + ADAM_EPS, 1.0)
    moved = due.unbiased_rate * new_momentum / scale
    if in_matrix is not None:
        moved = torch.where(in_matrix & (due.by_matrix > 0), active * rate * directions, moved)
        state.gradient_sum.copy_(torch.where(gathering > 0, accumulated, 0.0))
    new_weights = state.weights - (moved + active * decay * state.weights)
    state.average.add_(averaging * (new_weights - state.average))
    state.weights.copy_(new_weights)
    state.momentum.copy_(new_momentum)
    state.second_moment.copy_(new_second)
