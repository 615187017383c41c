"""PlainLoop: a run as a user would write it, under the same plans as ``ReferenceLoop``. What is timed.

The updates are ``update_rules.take_step``: torch's fused kernels where it has them, and the fastest there is here of
the two matrix rules. Microbatches come from torch's own generator, gradients gather in ``.grad``, nothing is read back
from a tensor between two decisions, and what a plan does not ask for is not there: no average, no last losses, no
clipping. So its samples are others than those of ``ReferenceLoop``, and its seconds those of a loop by hand.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from loopwright.envs.engine.reference import ReferenceLoop
from loopwright.envs.loop.compiled_probe import CompiledProbe, make_probe
from loopwright.envs.loop.plan import LoopPlan
from loopwright.envs.loop.probe import Probe
from loopwright.envs.loop.telemetry import PROBE, SUMS, WINDOW, Statistics
from loopwright.inner_tasks.losses import compute_losses, compute_mean_loss
from loopwright.inner_tasks.task import Split, Task


class PlainLoop(ReferenceLoop):
    """Arguments as those of ``ReferenceLoop``."""

    def __init__(self, task: Task, seed: int, **options: Any) -> None:
        super().__init__(task, seed, **options)
        self._generator = torch.Generator().manual_seed(seed)
        self._averaging = False

    def _make_probe(self) -> Probe | CompiledProbe:
        return make_probe(self.parameters)

    def run(self, plan: LoopPlan, ticks: int) -> Statistics:
        """Advance by ``ticks``; what was measured meanwhile."""
        if self.probe is not None:
            self.probe.begin()
        losses, updates, cost, active = [], 0, 0.0, self._activate(plan)
        for tick in range(ticks):
            if plan.sweep != "joint":
                active = self._activate(plan)
            losses.append(self._backward(plan, self._next_microbatch(plan)))
            cost += self._tick_cost(plan)
            self.count += 1
            if self.count >= plan.batch:
                self._step(plan, active, losses[-1], probe=tick >= ticks - WINDOW)
                updates += 1
        self.ticks += ticks
        if self.library is not None and plan.average == 0:
            self._keep_judged(self.library)
        loss = torch.stack(losses).numpy()
        sums = dict(zip(SUMS, (ticks, cost, loss.sum(), (loss**2).sum(), updates), strict=True))
        window = np.zeros((0, len(PROBE), 1), np.float32) if self.probe is None else self.probe.read()
        return Statistics(np.array([[sums[name]] for name in SUMS]), window)

    def evaluate(self, split: Split) -> tuple[float, float]:
        return self._evaluate(self._weights_to_judge, split)

    @torch.no_grad()
    def look(self, split: Split) -> float:
        """The mean loss alone: what a controller is shown."""
        return compute_mean_loss(self.task.loss, *self._predict(self._weights_to_judge, split)).item()

    @property
    def _weights_to_judge(self) -> nn.Module:
        return self.judged if self._averaging or self.library is not None else self.model

    def restore(self, snapshot: dict[str, Any]) -> None:
        super().restore(snapshot)
        self.model.zero_grad()
        self.count = 0

    def _next_microbatch(self, plan: LoopPlan) -> torch.Tensor:
        if plan.order != "shuffled":
            return super()._next_microbatch(plan)
        self.uses += 1
        if self.uses > plan.echo:
            self.cursor, self.uses = self.cursor + 1, 1
            size = (self.microbatch,)
            self.microbatch_read = torch.randint(len(self.task.train), size, generator=self._generator)
        return self.microbatch_read

    def _backward(self, plan: LoopPlan, index: torch.Tensor) -> torch.Tensor:
        """Add the gradient of a microbatch to that of the batch; its mean loss."""
        inputs, labels = self._cast(self.task.train.inputs[index]), self._cast(self.task.train.labels[index])
        kept = self._kept(plan)
        if kept < self.microbatch:
            with torch.no_grad():
                scores = compute_losses(self.task.loss, self.model(inputs), labels)
            chosen = scores.topk(kept).indices
            inputs, labels = inputs[chosen], labels[chosen]
        losses = compute_losses(self.task.loss, self.model(inputs), labels)
        loss = losses.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        seen = losses.detach() if kept == self.microbatch else scores
        if plan.order != "shuffled":
            self.last_loss[index] = seen
        return loss.detach() if kept == self.microbatch else seen.mean()

    @torch.no_grad()
    def _step(self, plan: LoopPlan, active: list[int], loss: torch.Tensor, *, probe: bool) -> None:
        if plan.average > 0 and not self._averaging:
            torch._foreach_copy_(self.average, self.parameters)
        self._averaging = plan.average > 0
        moved = [self.parameters[i] for i in active]
        gradients = [p.grad for p in moved if p.grad is not None]
        if self.count > 1:
            torch._foreach_div_(gradients, self.count)
        if probe and self.probe is not None:
            whole = gradients
            if len(gradients) < len(self.parameters):
                whole = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
            self.probe.measure(whole, self.momentum, self.parameters)
        if plan.clip < math.inf:  # torch's own, as a user has it; what is attached clips in a third of the time
            nn.utils.clip_grad_norm_(moved, plan.clip)
        if self.library is not None:
            self.library.step(loss.item())
        else:
            for b in {self.block_of[i] for i in active}:
                self.beta1_product[b] *= plan.momentum
                self.beta2_product[b] *= plan.second_momentum
            self._take_steps(plan, active, gradients)
        if plan.average > 0:
            torch._foreach_lerp_(self.average, self.parameters, 1 - 0.5 ** (self.count / plan.average))
        for p in self.parameters:
            p.grad = None
        self.updates, self.count = self.updates + 1, 0
