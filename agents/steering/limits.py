"""What a chosen plan is held to: what there is to steer, the user's limits, the first of several processes."""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import distributed
from torch.optim import Optimizer

from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.plan import PLAN_FIELDS


def check_limits(limits: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """A copy. Raises ``LoopwrightError`` for what is no field of a plan, and for a range without anything in it."""
    for field, (low, high) in limits.items():
        if field not in PLAN_FIELDS:
            raise LoopwrightError(f"limits are for fields of a plan: {', '.join(PLAN_FIELDS)}; got {field!r}")
        if not low <= high:
            raise LoopwrightError(f"limits of {field} must be (low, high); got {(low, high)}")
    return dict(limits)


def keep_within(chosen: Mapping[str, float], limits: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The fields ``chosen``, those with limits brought to the nearest that they allow."""
    kept = {field: min(max(chosen[field], low), high) for field, (low, high) in limits.items()}
    return {**chosen, **kept}


def is_held(field: str, limits: Mapping[str, tuple[float, float]]) -> bool:
    """Whether they leave it no room."""
    return field in limits and limits[field][0] == limits[field][1]


def say_what_is_off(optimizer: Optimizer, knobs: Sequence[str]) -> None:
    """Warn of ``knobs`` that have no counterpart in the optimizer."""
    if knobs:
        kind = type(optimizer).__name__
        warnings.warn(f"{kind} has nothing for the policy's {', '.join(knobs)}: left as they are", stacklevel=5)


def is_first() -> bool:
    """Whether this process is the first, or only one, of those that train together."""
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def follow_first(chosen: dict[str, float]) -> dict[str, float]:
    """Of several processes that train together the first decides, and the others follow."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return chosen
    values = torch.tensor(list(chosen.values()), dtype=torch.float64)
    distributed.broadcast(values, 0)
    return dict(zip(chosen, values.tolist(), strict=True))
