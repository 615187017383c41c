"""ReferenceLoop: one inner run as an ordinary PyTorch loop. The readable path, and the one for real wall-clock.

It reads the same samples and adds up the same telemetry as a lane of ``Lanes``, and a test holds the two together
step by step; where they differ, this file is right by definition.
"""

import math
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from loopwright.envs.lanes import initial_weights
from loopwright.envs.plan import LoopPlan
from loopwright.envs.randomness import make_key, microbatch_indices
from loopwright.envs.telemetry import SUMS
from loopwright.envs.tick import ADAM_EPS
from loopwright.inner_tasks.task import Split, Task


class ReferenceLoop:
    """Train ``task`` from ``seed``, ``microbatch`` samples per tick, under whatever plan ``run`` is given."""

    def __init__(self, task: Task, seed: int, *, microbatch: int = 16) -> None:
        self.task, self.microbatch = task, microbatch
        self.model = task.model.build()
        nn.utils.vector_to_parameters(initial_weights(task, seed), self.model.parameters())
        self.parameters = list(self.model.parameters())
        self.momentum = [torch.zeros_like(p) for p in self.parameters]
        self.second_moment = [torch.zeros_like(p) for p in self.parameters]
        self.average = [p.detach().clone() for p in self.parameters]
        self.previous = [torch.zeros_like(p) for p in self.parameters]
        self.key = make_key(torch.tensor([seed]))
        self.ticks = self.count = 0
        self.beta1_product = self.beta2_product = 1.0

    def run(self, plan: LoopPlan, ticks: int) -> torch.Tensor:
        """Advance by ``ticks`` and return the telemetry sums ``[len(SUMS)]``."""
        sums = dict.fromkeys(SUMS, 0.0)
        train = self.task.train
        for _ in range(ticks):
            index = microbatch_indices(self.key, torch.tensor([self.ticks]), self.microbatch, len(train))[0]
            before = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.parameters]
            loss = F.cross_entropy(self.model(train.inputs[index]), train.labels[index])
            loss.backward()  # type: ignore[no-untyped-call]
            self.ticks += 1
            self.count += 1
            sums["ticks"] += 1
            sums["loss"] += loss.item()
            sums["loss_square"] += loss.item() ** 2
            fresh = [cast(torch.Tensor, p.grad) - b for p, b in zip(self.parameters, before, strict=True)]
            sums["microbatch_square"] += _dot(fresh, fresh)
            if self.count >= plan.batch:
                self._update(plan, sums)
        return torch.tensor([sums[name] for name in SUMS])

    @torch.no_grad()
    def _update(self, plan: LoopPlan, sums: dict[str, float]) -> None:
        gradient = [cast(torch.Tensor, p.grad) / self.count for p in self.parameters]
        norm = math.sqrt(_dot(gradient, gradient))
        shrink = min(1.0, plan.clip / norm) if norm > 0 else 1.0
        momentum_norm = math.sqrt(_dot(self.momentum, self.momentum))
        previous_norm = math.sqrt(_dot(self.previous, self.previous))
        self.beta1_product *= plan.momentum
        self.beta2_product *= plan.second_momentum
        sums["updates"] += 1
        sums["gradient_square"] += norm**2
        sums["log_gradient_norm"] += _log(norm)
        sums["log_gradient_norm_square"] += _log(norm) ** 2
        sums["gradient_cosine"] += _dot(gradient, self.previous) / max(norm * previous_norm, 1e-15)
        sums["momentum_cosine"] += _dot(gradient, self.momentum) / max(norm * momentum_norm, 1e-15)
        sums["log_momentum_ratio"] += _log(momentum_norm) - _log(norm)
        sums["clipped"] += shrink < 1

        kept = 0.5 ** (self.count / plan.average) if plan.average > 0 else 0.0
        step_square = weight_square = 0.0
        for i, p in enumerate(self.parameters):
            clipped = gradient[i] * shrink
            self.momentum[i].lerp_(clipped, 1 - plan.momentum)
            self.second_moment[i].lerp_(clipped**2, 1 - plan.second_momentum)
            if plan.optimizer == "adamw":
                first = self.momentum[i] / (1 - self.beta1_product)
                second = self.second_moment[i] / (1 - self.beta2_product)
                direction = first / (second.sqrt() + ADAM_EPS)
            else:
                direction = self.momentum[i]
            step = plan.learning_rate * (direction + plan.weight_decay * p)
            p.sub_(step)
            step_square += step.square().sum().item()
            weight_square += p.square().sum().item()
            self.average[i].lerp_(p, 1 - kept)
            p.grad = None
        sums["log_step_ratio"] += _log(math.sqrt(step_square)) - _log(math.sqrt(weight_square))
        self.previous, self.count = gradient, 0

    @torch.no_grad()
    def evaluate(self, split: Split) -> tuple[float, float]:
        """Mean loss (nats) and accuracy of the averaged weights on a split."""
        named = dict(zip((name for name, _ in self.model.named_parameters()), self.average, strict=True))
        logits = torch.func.functional_call(self.model, named, (split.inputs,))
        accuracy = (logits.argmax(1) == split.labels).float().mean().item()
        return F.cross_entropy(logits, split.labels).item(), accuracy


def _dot(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return sum(torch.sum(x * y).item() for x, y in zip(a, b, strict=True))


def _log(norm: float) -> float:
    return math.log(max(norm, 1e-15))
