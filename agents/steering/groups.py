"""What a plan's fields are in the parameter groups of a torch optimizer, read and written.

A plan holds the momentum as an average, torch's SGD and RMSprop as a sum: there the plan's learning rate is torch's
over (1 - momentum), times (1 - dampening). Groups keep their ratios to one another: the plan speaks of the largest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from loopwright.agents.steering.optimizer import PlanOptimizer
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.plan import OPTIMIZERS

SUM, AVERAGE, BETA = "sum", "average", "betas"


@dataclass(frozen=True)
class Means:
    """How one kind of optimizer holds what a plan sets; None where it has no counterpart.

    Attributes:
        rule: the plan's ``optimizer`` it is, or is most like; None where it is like none.
        momentum: as ``BETA``, the first of ``betas``; as ``SUM`` or ``AVERAGE``, its ``momentum``.
        second: the second of ``betas``, or ``alpha``.
        decays: whether ``weight_decay`` works as if it were decoupled.
    """

    rule: str
    momentum: str | None = None
    second: str | None = None
    decays: bool = False


# By the name of the class: subclasses of other libraries are looked up under their own.
MEANS: dict[str, Means] = {
    "SGD": Means("sgd", SUM, None, decays=True),
    "AdamW": Means("adamw", BETA, BETA, decays=True),
    "Adam": Means("adamw", BETA, BETA),
    "NAdam": Means("adamw", BETA, BETA),
    "RAdam": Means("adamw", BETA, BETA),
    "Adamax": Means("adamw", BETA, BETA),
    "RMSprop": Means("adamw", SUM, "alpha"),
    "Muon": Means("muon", AVERAGE, None, decays=True),
}
LEARNING_RATE_ALONE = Means("adamw")
STATE_KEYS = ("exp_avg", "momentum_buffer")  # where optimizers keep the average or the sum of gradients


def _find_means(optimizer: Optimizer) -> Means:
    """By its name; one that has a known name, and not in every group the settings, is known by its rate alone."""
    means = MEANS.get(type(optimizer).__name__, LEARNING_RATE_ALONE)
    keys = {BETA if means.momentum == BETA else "momentum" if means.momentum else "lr", means.second or "lr"}
    return means if all(keys <= group.keys() for group in optimizer.param_groups) else LEARNING_RATE_ALONE


class Groups:
    """The parameter groups of an optimizer, as fields of a plan.

    Raises ``LoopwrightError`` for an optimizer without parameters, or with sparse ones.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not any(group["params"] for group in optimizer.param_groups):
            raise LoopwrightError(f"{type(optimizer).__name__} has no parameters to steer")
        self.optimizer = optimizer
        self.whole = optimizer if isinstance(optimizer, PlanOptimizer) else None  # it can do all that a plan can
        self.means = _find_means(optimizer)
        self.settable = self._find_settable()
        self._remember_ratios()

    def _find_settable(self) -> set[str]:
        """The plan's fields that can be set."""
        first, means = self.optimizer.param_groups[0], self.means
        found = {"learning_rate", "clip", "average"}
        if self.whole is not None:
            return found | {"momentum", "second_momentum", "weight_decay", "batch", "optimizer"}
        # RMSprop makes room for a momentum at its first update alone.
        held = means.rule == "sgd" or means.momentum == BETA or float(first.get("momentum", 0.0)) > 0
        if means.momentum is not None and held:
            found.add("momentum")
        if means.second is not None:
            found.add("second_momentum")
        if means.decays or first.get("decoupled_weight_decay"):
            found.add("weight_decay")
        return found

    def _remember_ratios(self) -> None:
        groups = self.optimizer.param_groups
        sizes = [sum(p.numel() for p in group["params"]) for group in groups]
        self.main = sizes.index(max(sizes))
        rate = self.rate
        self._rates = [float(group["lr"]) / rate if rate > 0 else 1.0 for group in groups]
        decays = [float(group.get("weight_decay", 0.0)) for group in groups]
        most = max(decays)
        self._decays = [decay / most if most > 0 else 1.0 for decay in decays]
        self.count = len(groups)

    @property
    def parameters(self) -> list[torch.Tensor]:
        """All that are updated, in the order of the groups."""
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]

    def refuse_sparse(self) -> None:
        """Raises ``LoopwrightError`` where a gradient is sparse."""
        if any(p.grad is not None and p.grad.is_sparse for p in self.parameters):
            raise LoopwrightError("sparse gradients cannot be steered; use dense ones (nn.Embedding(sparse=False))")

    @property
    def device(self) -> torch.device:
        """Where the first of them is."""
        first: torch.Tensor = next(p for group in self.optimizer.param_groups for p in group["params"])
        return first.device

    @property
    def size(self) -> int:
        """How many numbers those are."""
        return sum(p.numel() for p in self.parameters)

    @property
    def rate(self) -> float:
        """The learning rate of the largest group."""
        return float(self.optimizer.param_groups[self.main]["lr"])

    @property
    def has_adam_means(self) -> bool:
        """Whether its learning rate and momenta are of AdamW's kind, as those of all rules of a plan but SGD are."""
        if self.whole is not None:
            return bool(self.optimizer.param_groups[0]["rule"] != "sgd")
        return self.means.momentum == BETA

    def momenta(self, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        """The optimizer's average of the gradients of each; zeros where it has none yet."""
        found = []
        scale = 1.0
        if self.means.momentum == SUM:
            group = self.optimizer.param_groups[self.main]
            scale = (1 - float(group.get("momentum", 0.0))) / max(1 - float(group.get("dampening", 0.0)), 1e-6)
        for p in parameters:
            state = self.optimizer.state.get(p, {})
            held = next((state[key] for key in STATE_KEYS if isinstance(state.get(key), torch.Tensor)), None)
            found.append(torch.zeros_like(p) if held is None else held if scale == 1 else held * scale)
        return found

    def read(self, fields: Mapping[str, float]) -> dict[str, float]:
        """``fields`` of a plan with what the groups now say in place of theirs."""
        group, means = self.optimizer.param_groups[self.main], self.means
        found = dict(fields)
        if self.whole is not None:
            decay = max(float(own["weight_decay"]) for own in self.optimizer.param_groups)
            return found | {
                "learning_rate": float(group["lr"]), "momentum": group["momentum"], "weight_decay": decay,
                "second_momentum": group["second_momentum"], "batch": float(group["batch"]), "clip": group["clip"],
                "optimizer": float(OPTIMIZERS.index(group["rule"])),
            }  # fmt: skip
        rate = self.rate
        if "momentum" in self.settable:
            found["momentum"] = float(group["betas"][0] if means.momentum == BETA else group["momentum"])
            rate *= self._sum_factor(group, found["momentum"])
        else:
            found["momentum"] = 0.0
        if "second_momentum" in self.settable:
            found["second_momentum"] = float(group["betas"][1] if means.second == BETA else group["alpha"])
        if "weight_decay" in self.settable:
            found["weight_decay"] = max(float(own["weight_decay"]) for own in self.optimizer.param_groups)
        return found | {"learning_rate": rate, "optimizer": float(OPTIMIZERS.index(means.rule))}

    def _sum_factor(self, group: dict[str, Any], momentum: float) -> float:
        """What a learning rate that steps along a sum is multiplied by, for one that steps along the average."""
        if self.means.momentum != SUM:
            return 1.0
        return (1 - float(group.get("dampening", 0.0))) / (1 - momentum)

    def write(self, fields: Mapping[str, float]) -> None:
        """Set what can be set of a plan's ``fields``; the ratios between groups stay."""
        if self.whole is not None:
            rule = OPTIMIZERS[round(fields["optimizer"])]
            self.whole.share(rule=rule, batch=round(fields["batch"]), clip=float(fields["clip"]))
        for group, rate, decay in zip(self.optimizer.param_groups, self._rates, self._decays, strict=True):
            momentum = float(fields["momentum"])
            if self.whole is not None:
                group["momentum"], group["second_momentum"] = momentum, float(fields["second_momentum"])
                group["lr"], group["weight_decay"] = rate * fields["learning_rate"], decay * fields["weight_decay"]
                continue
            if "momentum" in self.settable and self.means.momentum == BETA:
                group["betas"] = (momentum, group["betas"][1])
            elif "momentum" in self.settable:
                group["momentum"] = momentum
            if "second_momentum" in self.settable and self.means.second == BETA:
                group["betas"] = (group["betas"][0], float(fields["second_momentum"]))
            elif "second_momentum" in self.settable:
                group["alpha"] = float(fields["second_momentum"])
            if "weight_decay" in self.settable:
                group["weight_decay"] = decay * float(fields["weight_decay"])
            held = float(group["momentum"]) if self.means.momentum == SUM and "momentum" in group else 0.0
            value = rate * float(fields["learning_rate"]) / self._sum_factor(group, held)
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(value)
            else:
                group["lr"] = value
