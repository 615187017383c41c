"""LibraryLanes: lanes whose update is another library's optimizer. For what a controller is compared with.

Microbatches and gradients are those of ``Lanes``, computed for all lanes at once; then each lane's own optimizer steps
on views of its row of the weights. Slower than ``Lanes``, and many times faster than a plain loop for each run.
"""

from collections.abc import Sequence
from typing import Any

import torch

from loopwright.envs.engine.lanes import Lanes
from loopwright.envs.engine.scope import Scope
from loopwright.envs.loop.controller import LibraryUpdate, OwnOptimizer
from loopwright.envs.loop.plan import ROW
from loopwright.envs.loop.telemetry import SUMS, Statistics
from loopwright.inner_tasks.task import Task


class LibraryLanes(Lanes):
    """``Lanes`` in which every run has an optimizer of its own; give it one with ``equip`` after ``load``.

    Of a plan it obeys ``batch``, ``clip`` and ``average``; the rest is the optimizer's. Telemetry has the loss and the
    cost, and nothing about the gradient.
    """

    def __init__(self, template: Task, lanes: int, **options: Any) -> None:
        """As those of ``Lanes``."""
        super().__init__(template, lanes, **options)
        self._parameters: list[list[torch.Tensor]] = [[] for _ in range(lanes)]
        self._libraries: list[LibraryUpdate | None] = [None] * lanes
        self._loss_sum = torch.zeros(lanes, dtype=self.dtype)  # over the microbatches gathered so far

    def equip(self, lane: int, optimizer: OwnOptimizer, updates: int) -> None:
        """Give the run that was just loaded into ``lane`` its optimizer, for so many updates."""
        weights, gradients = (
            [rows[lane]] if optimizer.flat else [piece[0] for piece in self.layout.split(rows[lane : lane + 1])]
            for rows in (self.state.weights, self.state.gradient_sum)
        )
        self._parameters[lane] = [view.detach().requires_grad_() for view in weights]
        for parameter, gradient in zip(self._parameters[lane], gradients, strict=True):
            parameter.grad = gradient
        self._libraries[lane] = optimizer.make(self._parameters[lane], updates)
        self._loss_sum[lane] = 0.0

    def release(self, lanes: Sequence[int]) -> None:
        """Take the optimizers away: nobody waits for what these lanes do."""
        for lane in lanes:
            self._libraries[lane] = None

    def run(self, plans: torch.Tensor, ticks: int) -> Statistics:
        statistics = super().run(plans, ticks)
        for lane, update in enumerate(self._libraries):
            if update is not None and plans[ROW["average"], lane] == 0:
                update.evaluate(True)
                self.state.average[lane] = self.state.weights[lane]
                update.evaluate(False)
        return statistics

    def _tick(self, plans: torch.Tensor, scope: Scope, *, probe: bool) -> torch.Tensor:
        state, count = self.state, self.state.scalars[0]
        losses, gradient = self._find_read(scope)(plans, *self.splits["train"], *state.tensors())
        state.last_loss.scatter_(1, state.microbatch, losses)
        loss = losses.mean(1)
        state.gradient_sum += gradient
        self._loss_sum += loss
        count += 1
        for name, term in (("ticks", 1.0), ("cost", float(self.microbatch)), ("loss", loss), ("loss_square", loss**2)):
            state.sums[SUMS.index(name)] += term
        due = count >= plans[ROW["batch"]]
        state.sums[SUMS.index("updates")] += due
        state.gradient_sum[due] /= count[due, None]
        for lane in due.nonzero().flatten().tolist():
            update = self._libraries[lane]
            if update is not None:
                mean = float(self._loss_sum[lane] / count[lane])
                self._step_one(lane, update, plans[:, lane].tolist(), mean, float(count[lane]))
        state.gradient_sum[due] = 0.0
        self._loss_sum[due] = 0.0
        count[due] = 0.0
        return self._nothing

    def _step_one(self, lane: int, update: LibraryUpdate, plan: list[float], loss: float, count: float) -> None:
        if plan[ROW["clip"]] != torch.inf:
            torch.nn.utils.clip_grad_norm_(self._parameters[lane], plan[ROW["clip"]])
        update.step(loss)
        if half_life := plan[ROW["average"]]:
            self.state.average[lane].lerp_(self.state.weights[lane], 1 - 0.5 ** (count / half_life))
