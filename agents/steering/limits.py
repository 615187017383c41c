"""Limits of what is chosen: the lowest and the highest value of fields of a plan."""

import math
from collections.abc import Mapping, Sequence

from loopwright.envs.loop.checks import check_kind
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.plan import CHOICES, PLAN_FIELDS, check_field

Limits = dict[str, tuple[float, float]]


def check_limits(limits: Mapping[str, tuple[float, float]]) -> Limits:
    """A copy. Raises ``LoopwrightError`` for what is no field of a plan, or no range of what that can be."""
    check_kind("limits", limits, Mapping, 'a mapping such as {"learning_rate": (1e-5, 1e-1)}')
    for field, limit in limits.items():
        if field not in PLAN_FIELDS:
            raise LoopwrightError(f"limits are for fields of a plan: {', '.join(PLAN_FIELDS)}; got {field!r}")
        if not (isinstance(limit, Sequence) and len(limit) == 2 and all(isinstance(end, int | float) for end in limit)):
            raise LoopwrightError(f"limits of {field} must be two numbers, (low, high); got {limit!r}")
        low, high = limit
        if not low <= high:
            raise LoopwrightError(f"limits of {field} must be (low, high); got {(low, high)}")
        for end in limit:
            if field not in CHOICES and math.isfinite(end) and not end == low <= 0:
                check_field(field, end)
    return {field: (float(low), float(high)) for field, (low, high) in limits.items()}


def keep_within(chosen: Mapping[str, float], limits: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The fields ``chosen``, those with limits brought to the nearest that they allow."""
    kept = {field: min(max(chosen[field], low), high) for field, (low, high) in limits.items()}
    return {**chosen, **kept}


def is_held(field: str, limits: Mapping[str, tuple[float, float]]) -> bool:
    """Whether they leave it no room."""
    return field in limits and limits[field][0] == limits[field][1]
