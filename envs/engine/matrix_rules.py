"""MatrixRules: the directions of many lanes' matrices under the matrix rules of ``update_rules``.

Their products cost more than all else in a tick, so only lanes that are due and under such a rule are worked on: they
are gathered, and their matrices of one shape make one batch. The second half of the tick then takes the step.
"""

import torch

from loopwright.envs.engine.lane_state import COUNTERS, LaneState, Layout
from loopwright.envs.engine.update import TINY, find_active_blocks, find_shrinkage
from loopwright.envs.loop.plan import OPTIMIZERS, ROW
from loopwright.envs.loop.update_rules import MATRIX_RULES


class MatrixRules:
    """Directions for the lanes of one model."""

    def __init__(self, layout: Layout, like: torch.Tensor) -> None:
        """Room for directions of the shape of ``like``, ``[lanes, parameters]``."""
        self._layout, self._directions = layout, torch.zeros_like(like)

    def direct(self, plans: torch.Tensor, fresh: torch.Tensor, state: LaneState) -> torch.Tensor:
        """Directions ``[lanes, parameters]`` of this tick's updates, ``fresh`` being its gradient.

        They are set for the matrices of lanes that are due and under a matrix rule, and mean nothing elsewhere.
        """
        due = state.scalars[0] + 1 >= plans[ROW["batch"]]
        for rule in MATRIX_RULES:
            lanes = (due & (plans[ROW["optimizer"]] == OPTIMIZERS.index(rule))).nonzero()[:, 0]
            if len(lanes):
                self._direct_lanes(rule, lanes, plans[:, lanes], fresh, state)
        return self._directions

    def _direct_lanes(
        self, rule: str, lanes: torch.Tensor, plans: torch.Tensor, fresh: torch.Tensor, state: LaneState
    ) -> None:
        layout, count = self._layout, state.scalars[0, lanes, None] + 1
        gradient = (state.gradient_sum[lanes] + fresh[lanes]) / count
        low, high = find_active_blocks(
            plans[ROW["depth"]], plans[ROW["sweep"]], state.counters[COUNTERS.index("updates"), lanes], layout.blocks
        )
        block = torch.arange(layout.blocks, device=low.device)
        path = ((block >= low[:, None]) & (block < high[:, None])).to(gradient.dtype)
        if not path.all():
            gradient = torch.where(layout.expand(path) > 0, gradient, 0.0)
        if (plans[ROW["clip"]] < torch.inf).any():
            inverse_norm = torch.rsqrt((gradient * gradient).sum(1) + TINY)
            gradient *= find_shrinkage(plans[ROW["clip"]], inverse_norm)[:, None]
        beta1 = plans[ROW["momentum"], :, None]
        momentum = gradient + beta1 * (state.momentum[lanes] - gradient)
        for (rows, columns), begins in layout.matrices.items():
            parts = [slice(begin, begin + rows * columns) for begin in begins]

            stacked_momentum, stacked_gradient = (
                torch.stack([flat[:, part].view(-1, rows, columns) for part in parts], dim=1)
                for flat in (momentum, gradient)
            )
            directions = MATRIX_RULES[rule](stacked_momentum, stacked_gradient, beta1[:, :, None, None])
            for part, own in zip(parts, directions.flatten(2).unbind(1), strict=True):
                self._directions[:, part].index_copy_(0, lanes, own)
