"""What a chosen plan is held to: what there is to steer, the user's limits, the first of several processes."""

import math
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import distributed
from torch.optim import Optimizer

from loopwright.envs.loop.checks import check_kind
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knobs import Knob
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


def say_what_is_off(optimizer: Optimizer, knobs: Sequence[Knob], steered: Sequence[bool], limits: Limits) -> None:
    """Warn of ``knobs`` that have no counterpart in the optimizer, unless ``limits`` hold them anyway."""
    off = [k.name for k, on in zip(knobs, steered, strict=True) if not on and not is_held(k.field, limits)]
    if off:
        kind = type(optimizer).__name__
        warnings.warn(f"{kind} has nothing for the policy's {', '.join(off)}: left as they are", stacklevel=5)


def _train_together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def is_first() -> bool:
    """Whether this process is the first, or only one, of those that train together."""
    return not _train_together() or distributed.get_rank() == 0


def _share(numbers: Sequence[float], device: torch.device) -> torch.Tensor:
    """The numbers where the processes' backend can take them: gloo from the CPU, NCCL from the ``device`` alone."""
    known = distributed.get_backend()  # "undefined" where none was named: then there is one for each kind of device
    from_cpu = known in ("mpi", "undefined") or "gloo" in known
    return torch.tensor(list(numbers), dtype=torch.float64, device="cpu" if from_cpu else device)


def follow_first(chosen: dict[str, float], device: torch.device) -> dict[str, float]:
    """Of several processes that train together the first decides, and the others follow."""
    if not _train_together():
        return chosen
    values = _share(list(chosen.values()), device)
    distributed.broadcast(values, 0)
    return dict(zip(chosen, values.tolist(), strict=True))


def average_over_processes(numbers: list[float], device: torch.device) -> list[float]:
    """The mean of each over the processes that train together: what all of them judge by has to be the same."""
    if not _train_together():
        return numbers
    values = _share(numbers, device)
    distributed.all_reduce(values)
    means: list[float] = (values / distributed.get_world_size()).tolist()
    return means
