"""LoopPlan: everything a controller may set about a training loop, and the same for many lanes as one tensor."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loopwright.envs.loop.checks import check_kind, say_value
from loopwright.envs.loop.errors import LoopwrightError

# Fields that take one of a few names. Stacked plans hold the position in the tuple; knobs step along it.
CHOICES = {
    "optimizer": ("sgd", "adamw", "sinkgd", "muon"),
    "order": ("easy-first", "shuffled", "hard-first"),
    "sweep": ("top-down", "joint", "bottom-up"),
}
OPTIMIZERS = CHOICES["optimizer"]
SGD, ADAMW = OPTIMIZERS.index("sgd"), OPTIMIZERS.index("adamw")  # the matrix rules come after them


@dataclass(frozen=True)
class LoopPlan:
    """How the inner loop trains until the next decision.

    All optimizers keep the momentum as an exponential average, m = beta m + (1 - beta) g, so that moving ``momentum``
    leaves the size of a step alone: ``sgd`` here is ``torch.optim.SGD`` with learning rate (1 - momentum) times as
    large (Sutskever et al. 2013, section 2, up to that factor). ``adamw`` is Loshchilov & Hutter 2019, algorithm 2;
    ``sinkgd`` and ``muon`` treat matrices as such (``update_rules``), and take adamw's learning rate.

    A *microbatch* is what one tick reads; the *active* blocks of the model are those that ``depth`` and ``sweep`` let
    an update change. Everything else about a block that is not active stays as it is, its optimizer state included.

    Attributes:
        optimizer: update rule, one of ``OPTIMIZERS``. All keep the same state, so a switch carries it over.
        learning_rate: step size, >= 0.
        momentum: beta1, in [0, 1), and below 1 once rounded to float32, in which plans are stacked.
        second_momentum: beta2, of the average of the squared gradient, in the same range.
        weight_decay: decoupled decay, multiplied by the learning rate, >= 0.
        clip: threshold on the norm of the accumulated gradient, > 0; infinity is off (Pascanu et al. 2013).
        batch: microbatches accumulated per update, a whole number >= 1.
        average: half-life, in ticks, of the exponential average of the weights that is evaluated (Polyak & Juditsky
            1992); 0 is off and evaluates the weights themselves.
        depth: gradient path over layers: the share of the blocks, counted from the output and rounded, at least one,
            that receives gradient, in (0, 1]; the prefix before them costs no backward pass (FreezeOut, Brock et al.
            2017).
        keep: gradient path over samples: the share of a microbatch, rounded, at least one sample, that is
            back-propagated, largest losses first, in (0, 1]; below 1 it costs a scoring pass over all of the
            microbatch (Selective-Backprop, Jiang et al. 2019).
        order: data order: "shuffled"; or the sample with the largest ("hard-first") or smallest ("easy-first") last
            seen loss out of three drawn, unseen ones first (Loshchilov & Hutter 2016; Bengio et al. 2009).
        echo: how often a microbatch is used in a row, a whole number >= 1 (data echoing, Choi et al. 2019).
        sweep: "joint" updates all blocks of the gradient path at once; "top-down" and "bottom-up" one block an update,
            in turn, from the output or towards it (block coordinate descent).
        rollback: return to the best snapshot before training on. A command: true for one decision only.
    """

    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    second_momentum: float = 0.999
    weight_decay: float = 0.0
    clip: float = math.inf
    batch: int = 2
    average: float = 0.0
    depth: float = 1.0
    keep: float = 1.0
    order: str = "shuffled"
    echo: int = 1
    sweep: str = "joint"
    rollback: bool = False

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise LoopwrightError(
                    f"{name} must be one of {', '.join(choices)}; got {say_value(getattr(self, name))}"
                )
        for name in _ACCEPTED:
            check_field(name, getattr(self, name))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values; infinity, which JSON lacks, as the string "inf"."""
        return {name: "inf" if value == math.inf else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "LoopPlan":
        """The inverse of ``as_json``. Raises ``LoopwrightError`` for a field that does not exist, or cannot be."""
        check_kind("a plan", values, dict, "a mapping of its fields")
        unknown = values.keys() - set(PLAN_FIELDS)
        if unknown:
            raise LoopwrightError(f"a plan has no field {say_value(min(unknown))}; it has {', '.join(PLAN_FIELDS)}")
        found: dict[str, Any] = {name: math.inf if value == "inf" else value for name, value in values.items()}
        return cls(**found)


def _is_finite(value: float) -> bool:
    return 0 <= value <= _LARGEST


def _is_average(value: float) -> bool:
    return 0 <= value < 1 and bool(np.float32(value) < 1)


def _is_share(value: float) -> bool:
    return 0 < value <= 1


def _is_count(value: float) -> bool:
    return 1 <= value <= _LARGEST and value == int(value)


_LARGEST = float(np.finfo(np.float32).max)  # plans are stacked in float32
_ACCEPTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "learning_rate": ("finite in float32 and >= 0", _is_finite),
    "momentum": ("in [0, 1), below 1 in float32 too", _is_average),
    "second_momentum": ("in [0, 1), below 1 in float32 too", _is_average),
    "weight_decay": ("finite in float32 and >= 0", _is_finite),
    "clip": ("above 0 (infinity is off)", lambda value: value > 0),
    "batch": ("a whole number >= 1", _is_count),
    "average": ("finite in float32 and >= 0", _is_finite),
    "depth": ("in (0, 1]", _is_share),
    "keep": ("in (0, 1]", _is_share),
    "echo": ("a whole number >= 1", _is_count),
    "rollback": ("true or false", lambda value: value in (True, False)),
}
PLAN_FIELDS = tuple(field.name for field in fields(LoopPlan))
ROW = {name: row for row, name in enumerate(PLAN_FIELDS)}


def check_field(name: str, value: Any) -> None:
    """Raise ``LoopwrightError`` unless ``value`` is one that the field of that name, no choice, can have."""
    accepted, holds = _ACCEPTED[name]
    try:
        fine = bool(holds(value))
    except (TypeError, ValueError, OverflowError):  # text, arrays, numbers without end
        fine = False
    if not fine:
        raise LoopwrightError(f"{name} must be {accepted}; got {say_value(value)}")


def stack_plans(plans: Sequence[LoopPlan], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Plans as one tensor ``[len(PLAN_FIELDS), lanes]``; a field of ``CHOICES`` is its position there."""
    rows = [[CHOICES[k].index(v) if k in CHOICES else float(v) for k, v in p.as_dict().items()] for p in plans]
    return torch.tensor(rows, dtype=dtype).T.contiguous()


def name_rows(plans: torch.Tensor) -> dict[str, npt.NDArray[np.floating]]:
    """The fields of stacked plans by name, each ``[lanes]``: views of them."""
    return dict(zip(PLAN_FIELDS, plans.numpy(), strict=True))


def name_column(plans: torch.Tensor, lane: int) -> dict[str, float]:
    """The fields of one of them by name, as numbers."""
    return dict(zip(PLAN_FIELDS, plans[:, lane].tolist(), strict=True))


def describe_column(column: Mapping[str, float]) -> dict[str, Any]:
    """The numbers of a plan as ``LoopPlan.as_json`` has them: choices by name, infinity as "inf"."""
    named = {name: CHOICES[name][round(value)] if name in CHOICES else value for name, value in column.items()}
    return {name: "inf" if value == math.inf else value for name, value in named.items()}


def unstack_plans(plans: torch.Tensor) -> list[LoopPlan]:
    """The inverse of ``stack_plans``, to the tensor's precision."""
    found = []
    for column in plans.T.tolist():
        values: dict[str, Any] = dict(zip(PLAN_FIELDS, column, strict=True))
        values |= {name: choices[int(values[name])] for name, choices in CHOICES.items()}
        values |= {name: int(values[name]) for name in ("batch", "echo")} | {"rollback": bool(values["rollback"])}
        found.append(LoopPlan(**values))
    return found
