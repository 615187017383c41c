"""MatrixRules: the directions of many lanes' matrices under the matrix rules of ``update_rules``.

Their products cost more than all else in a tick, so only lanes that are due and under such a rule are worked on: they
are gathered, and their matrices of one shape make one batch. The second half of the tick then takes the step.
"""

import torch

from loopwright.envs.engine.lane_state import COUNTERS, LaneState, Layout
from loopwright.envs.engine.scope import JOINT
from loopwright.envs.engine.update import find_active_blocks, find_shrinkage, mask_blocks
from loopwright.envs.loop.plan import ADAMW, OPTIMIZERS, ROW
from loopwright.envs.loop.telemetry import TINY
from loopwright.envs.loop.update_rules import MATRIX_RULES, direct_batch


class MatrixRules:
    """Directions for the lanes of one model."""

    def __init__(self, layout: Layout, like: torch.Tensor) -> None:
        """Room for directions of the shape of ``like``, ``[lanes, parameters]``."""
        self._layout, self._directions = layout, torch.zeros_like(like)

    def direct(self, plans: torch.Tensor, fresh: torch.Tensor, state: LaneState) -> torch.Tensor:
        """Directions ``[lanes, parameters]`` of this tick's updates, ``fresh`` being its gradient.

        They are set for the matrices of lanes that are due and under a matrix rule, and mean nothing elsewhere.
        """
        rule = plans[ROW["optimizer"]]
        due = (rule > ADAMW) & (state.scalars[0] + 1 >= plans[ROW["batch"]])
        if not due.any():
            return self._directions
        by_rule = {name: (due & (rule == OPTIMIZERS.index(name))).nonzero()[:, 0] for name in MATRIX_RULES}
        lanes, sizes = torch.cat(list(by_rule.values())), [len(own) for own in by_rule.values()]
        momentum, gradient = self._average(lanes, plans[:, lanes], fresh, state)
        beta1 = plans[ROW["momentum"], lanes, None, None, None]
        for (rows, columns), begins in self._layout.matrices.items():
            parts = [slice(begin, begin + rows * columns) for begin in begins]
            momenta, gradients = (
                torch.stack([flat[:, part].view(-1, rows, columns) for part in parts], dim=1)
                for flat in (momentum, gradient)
            )
            of_each = zip(*(torch.split(tensor, sizes) for tensor in (momenta, gradients, beta1)), strict=True)
            for (name, own), batch in zip(by_rule.items(), of_each, strict=True):
                if len(own):
                    directions = direct_batch(name, *batch)
                    for part, direction in zip(parts, directions.flatten(2).unbind(1), strict=True):
                        self._directions[:, part].index_copy_(0, own, direction)
        return self._directions

    def _average(
        self, lanes: torch.Tensor, plans: torch.Tensor, fresh: torch.Tensor, state: LaneState
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Momentum and gradient, as the update will make them, of some ``lanes``, each ``[len(lanes), parameters]``."""
        layout, count = self._layout, state.scalars[0, lanes, None] + 1
        gradient = state.gradient_sum[lanes].add_(fresh[lanes]).div_(count)
        if ((plans[ROW["depth"]] < 1) | (plans[ROW["sweep"]] != JOINT)).any():
            low, high = find_active_blocks(
                plans[ROW["depth"]],
                plans[ROW["sweep"]],
                state.counters[COUNTERS.index("updates"), lanes],
                layout.blocks,
            )
            path = mask_blocks(low, high, layout.blocks).to(gradient.dtype)
            gradient = torch.where(layout.expand(path) > 0, gradient, 0.0)
        if (plans[ROW["clip"]] < torch.inf).any():
            inverse_norm = torch.rsqrt((gradient * gradient).sum(1) + TINY)
            gradient *= find_shrinkage(plans[ROW["clip"]], inverse_norm)[:, None]
        return torch.lerp(gradient, state.momentum[lanes], plans[ROW["momentum"], :, None]), gradient
