"""PlanOptimizer: everything that a plan can ask of an update, as an ordinary torch optimizer.

Sgd, adamw, sinkgd and muon in one, between which it can be switched; batches that are gathered over several calls of
``step``; clipping. The updates are those of the environments (``envs.loop.update_rules``).
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from loopwright.agents.steering.stopwatch import time_rules
from loopwright.envs.loop.clipping import clip_gradients
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.plan import LoopPlan
from loopwright.envs.loop.update_rules import ADAM_EPS, Parts, take_step

_Tensors = list[torch.Tensor]
UpdateHook = Callable[[_Tensors, _Tensors, _Tensors], None]


class PlanOptimizer(Optimizer):
    """Updates parameters by one of the rules of a plan.

    Args:
        params: as for any optimizer of torch.
        lr, momentum, second_momentum, weight_decay: see ``LoopPlan``; of each group.
        rule: one of ``loopwright``'s update rules, "sgd", "adamw", "sinkgd", "muon".
        batch: calls of ``step`` whose gradients make one update, of their mean. Call ``zero_grad`` after each.
        clip: threshold on the norm of that mean.

    Attributes:
        updated: whether the last call of ``step`` made an update.

    Raises:
        LoopwrightError: values that a plan cannot have.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        momentum: float = 0.9,
        second_momentum: float = 0.999,
        weight_decay: float = 0.0,
        rule: str = "adamw",
        batch: int = 1,
        clip: float = math.inf,
    ) -> None:
        plan = LoopPlan(rule, lr, momentum, second_momentum, weight_decay, clip, batch)
        self._hooks_before: dict[int, UpdateHook] = OrderedDict()
        self._wanted: tuple[Any, ...] | None
        self._plan, self._wanted, self.updated = plan, None, False
        defaults = {
            "lr": lr, "momentum": momentum, "second_momentum": second_momentum, "weight_decay": weight_decay,
            "product1": 1.0, "product2": 1.0, "rule": rule, "batch": batch, "clip": clip, "gathered": 0,
        }  # fmt: skip
        super().__init__(params, defaults)

    def register_update_hook(self, hook: UpdateHook) -> RemovableHandle:
        """``hook(parameters, gradients, momenta)`` is called before every update, with the mean gradients unclipped."""
        handle = RemovableHandle(self._hooks_before)
        self._hooks_before[handle.id] = hook
        return handle

    def share(self, **values: Any) -> None:
        """Set ``rule``, ``batch`` or ``clip`` for all groups."""
        for group in self.param_groups:
            group.update(values)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take in the gradients; where they complete a batch, update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = self.param_groups[0]
        self.share(gathered=first["gathered"] + 1)
        count = first["gathered"]
        self.updated = count >= first["batch"]
        owned = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        flat = [p for own in owned for p in own]
        self._prepare(flat)
        gradients = self._gather(flat, count)
        if self.updated and flat:
            for hook in self._hooks_before.values():
                hook(flat, gradients, [self.state[p]["momentum"] for p in flat])
            clip_gradients(gradients, first["clip"])
            begin = 0
            for group, own in zip(self.param_groups, owned, strict=True):
                self._move(group, own, gradients[begin : begin + len(own)])
                begin += len(own)
        if self.updated:
            self.share(gathered=0)
        return loss

    def _prepare(self, parameters: _Tensors) -> None:
        for p in parameters:
            if p.grad is not None and p.grad.is_sparse:
                raise LoopwrightError("PlanOptimizer takes dense gradients; use nn.Embedding(sparse=False)")
            if "momentum" not in self.state[p]:
                self.state[p] |= {"momentum": torch.zeros_like(p), "second_moment": torch.zeros_like(p)}

    def _gather(self, parameters: _Tensors, count: int) -> _Tensors:
        """The mean gradients of the batch so far; copies, unless one call makes a batch and nothing is clipped."""
        fresh = [p.grad for p in parameters if p.grad is not None]
        if self.updated and count == 1:
            return fresh
        sums = []
        for p, gradient in zip(parameters, fresh, strict=True):
            held = self.state[p].pop("gathered", None)
            sums.append(gradient.clone() if held is None else held.add_(gradient))
            if not self.updated:
                self.state[p]["gathered"] = sums[-1]
        return list(torch._foreach_div(sums, count)) if self.updated and sums else sums

    def _move(self, group: dict[str, Any], parameters: _Tensors, gradients: _Tensors) -> None:
        if not parameters:
            return
        wanted = (group["rule"], float(group["lr"]), group["momentum"], group["second_momentum"], group["weight_decay"])
        if wanted != self._wanted:  # a plan checks itself, which takes longer than a small update
            self._wanted, self._plan = wanted, LoopPlan(*wanted)
        group["product1"] *= group["momentum"]
        group["product2"] *= group["second_momentum"]
        state = [self.state[q] for q in parameters]
        parts = Parts(parameters, gradients, [s["momentum"] for s in state], [s["second_moment"] for s in state])
        take_step(self._plan, parts, 1 - group["product1"], 1 - group["product2"])

    @torch.no_grad()
    def time_rules(self) -> dict[str, float] | None:
        """Seconds of one update by each rule; None before the first."""
        held = [p for group in self.param_groups for p in group["params"] if "momentum" in self.state.get(p, {})]
        if not held:
            return None
        state = [self.state[p] for p in held]
        momenta = [s["momentum"] for s in state]
        return time_rules(Parts(held, momenta, momenta, [s["second_moment"] for s in state]))

    @torch.no_grad()
    def step_ratio(self) -> torch.Tensor:
        """How many times as long adamw's step is as sgd's at the same learning rate, ``[1]``; 1 before any update."""
        long = short = 0.0
        for group in self.param_groups:
            bias1, bias2 = 1 - group["product1"], 1 - group["product2"]
            for p in group["params"]:
                state = self.state.get(p, {})
                if "momentum" in state and bias1 > 0:
                    root = (state["second_moment"] / bias2).sqrt_().add_(ADAM_EPS)
                    long += float((state["momentum"] / bias1 / root).square().sum())
                    short += float(state["momentum"].square().sum())
        ratio = math.sqrt(long / short) if short > 0 else 1.0
        return torch.tensor([ratio if math.isfinite(ratio) and ratio > 0 else 1.0])


def optimizer(model: torch.nn.Module | Sequence[torch.Tensor], lr: float = 1e-3, **options: Any) -> PlanOptimizer:
    """An optimizer that can do all that a policy may ask for, of a ``model`` or of its parameters.

    Attach a policy to it (``loopwright.attach``) and the whole policy is in use. For ``options`` see ``PlanOptimizer``.
    """
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else model
    return PlanOptimizer(parameters, lr, **options)
