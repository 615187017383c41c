"""LoopPlan: everything a controller may set about a training loop, and the same for many lanes as one tensor."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from loopwright.inner_tasks.errors import LoopwrightError

OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True)
class LoopPlan:
    """How the inner loop trains until the next decision.

    Both optimizers keep the momentum as an exponential average, m = beta m + (1 - beta) g, so that moving ``momentum``
    leaves the size of a step alone: ``sgd`` here is ``torch.optim.SGD`` with learning rate (1 - momentum) times as
    large (Sutskever et al. 2013, section 2, up to that factor). ``adamw`` is Loshchilov & Hutter 2019, algorithm 2.

    Attributes:
        optimizer: update rule, "sgd" or "adamw". Both keep the same state, so a switch carries it over.
        learning_rate: step size, >= 0.
        momentum: beta1, in [0, 1).
        second_momentum: beta2 of adamw, in [0, 1).
        weight_decay: decoupled decay, multiplied by the learning rate, >= 0.
        clip: threshold on the norm of the accumulated gradient, > 0; infinity is off (Pascanu et al. 2013).
        batch: microbatches accumulated per update, a whole number >= 1.
        average: half-life, in ticks, of the exponential average of the weights that is evaluated (Polyak & Juditsky
            1992); 0 is off and evaluates the weights themselves.
    """

    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    second_momentum: float = 0.999
    weight_decay: float = 0.0
    clip: float = math.inf
    batch: int = 2
    average: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise LoopwrightError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {self.optimizer!r}")
        for name, accepted, holds in (
            ("learning_rate", "finite and >= 0", 0 <= self.learning_rate < math.inf),
            ("momentum", "in [0, 1)", 0 <= self.momentum < 1),
            ("second_momentum", "in [0, 1)", 0 <= self.second_momentum < 1),
            ("weight_decay", "finite and >= 0", 0 <= self.weight_decay < math.inf),
            ("clip", "above 0 (infinity is off)", self.clip > 0),
            ("batch", "a whole number >= 1", self.batch >= 1 and self.batch == int(self.batch)),
            ("average", "finite and >= 0", 0 <= self.average < math.inf),
        ):
            if not holds:
                raise LoopwrightError(f"{name} must be {accepted}; got {getattr(self, name)!r}")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values; infinity, which JSON lacks, as the string "inf"."""
        return {name: "inf" if value == math.inf else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "LoopPlan":
        """The inverse of ``as_json``. Raises TypeError for a field that does not exist."""
        found: dict[str, Any] = {name: math.inf if value == "inf" else value for name, value in values.items()}
        return cls(**found)


PLAN_FIELDS = tuple(field.name for field in fields(LoopPlan))
ROW = {name: row for row, name in enumerate(PLAN_FIELDS)}


def stack_plans(plans: Sequence[LoopPlan]) -> torch.Tensor:
    """Plans as one float32 tensor ``[len(PLAN_FIELDS), lanes]``; the optimizer is its index in ``OPTIMIZERS``."""
    rows = [[OPTIMIZERS.index(v) if k == "optimizer" else float(v) for k, v in p.as_dict().items()] for p in plans]
    return torch.tensor(rows, dtype=torch.float32).T.contiguous()


def unstack_plans(plans: torch.Tensor) -> list[LoopPlan]:
    """The inverse of ``stack_plans``, to float32 precision."""
    return [
        LoopPlan(
            **{
                **dict(zip(PLAN_FIELDS, column, strict=True)),
                "optimizer": OPTIMIZERS[int(column[ROW["optimizer"]])],
                "batch": int(column[ROW["batch"]]),
            }
        )
        for column in plans.T.tolist()
    ]
