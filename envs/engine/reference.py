"""ReferenceLoop: one inner run as an ordinary PyTorch loop. The readable path, and the one for real wall-clock.

It reads the same samples and adds up the same telemetry as a lane of ``Lanes`` (or, given another library's optimizer,
of ``LibraryLanes``), and tests hold them together step by step; where they differ, this file is right by definition.
What a plan leaves out is really not done here: a frozen prefix builds no graph, samples that are not kept are scored
without one, and optimizer state outside the active blocks is not touched.
"""

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import nn

from loopwright.envs.engine.cost import Cost, measure_cost
from loopwright.envs.engine.randomness import draw_candidates, make_key
from loopwright.envs.engine.weights import draw_weights
from loopwright.envs.loop.compiled_probe import CompiledProbe
from loopwright.envs.loop.controller import LibraryUpdate, OwnOptimizer
from loopwright.envs.loop.plan import LoopPlan
from loopwright.envs.loop.probe import Probe
from loopwright.envs.loop.telemetry import PROBE, SUMS, WINDOW, Statistics
from loopwright.envs.loop.update_rules import ADAM_EPS, Parts, take_step
from loopwright.inner_tasks.losses import compute_losses, compute_metric
from loopwright.inner_tasks.task import Split, Task

Tensors = list[torch.Tensor]
BlockRange = tuple[int, int]  # the first active block, and the one after the last


class ReferenceLoop:
    """Train ``task`` from ``seed``, ``microbatch`` samples per tick, under whatever plan ``run`` is given.

    Args:
        task, seed, microbatch, dtype: as in ``Lanes``.
        telemetry: whether updates are measured; without, only ticks, cost, loss and updates are summed.
        own_optimizer: another library's optimizer, which then updates; of a plan ``batch``, ``clip`` and ``average``
            are left.
        updates: how many updates that optimizer will make at most.
    """

    # All that changes while it trains, besides the weights and their average; a snapshot holds these.
    STATE = ("momentum", "second_moment", "gradient_sum", "last_loss", "microbatch_read", "ticks",
             "cursor", "uses", "updates", "count", "loss_sum", "beta1_product", "beta2_product")  # fmt: skip

    def __init__(
        self,
        task: Task,
        seed: int,
        *,
        microbatch: int = 16,
        dtype: torch.dtype = torch.float32,
        telemetry: bool = True,
        own_optimizer: OwnOptimizer | None = None,
        updates: int = 1,
    ) -> None:
        self.task, self.microbatch, self.dtype = task, microbatch, dtype
        self.model = task.model.build()
        nn.utils.vector_to_parameters(draw_weights(task, seed), self.model.parameters())
        self.model.to(dtype)
        self.cost = measure_cost(task.model)
        self.parameters: Tensors = list(self.model.parameters())
        self.library = own_optimizer.make(self.parameters, updates) if own_optimizer else None
        self.block_of = [b for b, block in enumerate(self.model) for _ in block.parameters()]
        self.momentum, self.second_moment, self.gradient_sum = (
            [torch.zeros_like(p) for p in self.parameters] for _ in range(3)
        )
        self.probe = self._make_probe() if telemetry and self.library is None else None
        self.judged = copy.deepcopy(self.model).requires_grad_(False)  # with the averaged weights
        self.average: Tensors = list(self.judged.parameters())
        self.last_loss = torch.full((len(task.train),), math.inf, dtype=dtype)
        self.microbatch_read = torch.zeros(microbatch, dtype=torch.int64)
        self.key = make_key(torch.tensor([seed]))
        self.cursor, self.uses = -1, 2**40  # the first tick reads a new microbatch, whatever ``echo`` is
        self.ticks = self.updates = self.count = 0
        self.loss_sum = 0.0  # over the microbatches gathered so far
        self.beta1_product = [1.0] * len(self.model)
        self.beta2_product = [1.0] * len(self.model)

    def snapshot(self, into: dict[str, Any] | None = None) -> dict[str, Any]:
        """A copy of everything ``restore`` needs to come back to this moment.

        Tensors go where those of an earlier snapshot, ``into``, are: fresh memory takes several times as long.
        """
        state = {name: getattr(self, name) for name in self.STATE}
        state |= {"weights": self.parameters, "average": self.average}
        return {name: _copy(own, into and into[name]) for name, own in state.items()}

    @torch.no_grad()
    def restore(self, snapshot: dict[str, Any]) -> None:
        for name, own in (("weights", self.parameters), ("average", self.average)):
            for p, weights in zip(own, snapshot[name], strict=True):
                p.copy_(weights)
        for name in self.STATE:
            setattr(self, name, _copy(snapshot[name]))

    def _make_probe(self) -> Probe | CompiledProbe:
        return Probe(self.parameters, None)

    @torch.no_grad()
    def step_ratio(self) -> torch.Tensor:
        """As ``Lanes.step_ratio``: how many times as long adamw's step is as sgd's, ``[1]``; 1 before any update."""
        square = 0.0
        for i, b in enumerate(self.block_of):
            if self.beta1_product[b] < 1:
                first = self.momentum[i] / (1 - self.beta1_product[b])
                step = first / ((self.second_moment[i] / (1 - self.beta2_product[b])).sqrt() + ADAM_EPS)
                square += _dot([step], [step])
        momentum = math.sqrt(_dot(self.momentum, self.momentum))
        ratio = math.sqrt(square) / momentum if momentum > 0 else 1.0
        return torch.tensor([ratio if math.isfinite(ratio) and ratio > 0 else 1.0])

    def run(self, plan: LoopPlan, ticks: int) -> Statistics:
        """Advance by ``ticks``; what was measured meanwhile."""
        sums = dict.fromkeys(SUMS, 0.0)
        if self.probe is not None:
            self.probe.begin()
        for tick in range(ticks):
            active = self._activate(plan)
            loss, fresh = self._gradient(plan, self._next_microbatch(plan), active)
            for i in set(range(len(self.parameters))).difference(active):
                self.gradient_sum[i].zero_()  # a block that leaves the path loses what it had gathered
            for i, own in zip(active, fresh, strict=True):
                self.gradient_sum[i] += own
            self.ticks += 1
            self.count += 1
            self.loss_sum += loss
            sums["ticks"] += 1
            sums["cost"] += self._tick_cost(plan)
            sums["loss"] += loss
            sums["loss_square"] += loss**2
            if self.count >= plan.batch:
                sums["updates"] += 1
                if self.library is None:
                    self._update(plan, active, probe=tick >= ticks - WINDOW)
                else:
                    self._update_by(self.library, plan)
        if self.library is not None and plan.average == 0:
            self._keep_judged(self.library)
        window = np.zeros((0, len(PROBE), 1), np.float32) if self.probe is None else self.probe.read()
        return Statistics(np.array([[sums[name]] for name in SUMS]), window)

    def _next_microbatch(self, plan: LoopPlan) -> torch.Tensor:
        """The samples read last once more, or new ones: of each three candidates the one that ``order`` prefers."""
        self.uses += 1
        if self.uses <= plan.echo:
            return self.microbatch_read
        self.cursor, self.uses = self.cursor + 1, 1
        drawn = draw_candidates(self.key, torch.tensor([self.cursor]), self.microbatch, len(self.task.train))
        candidates = torch.cat(drawn)  # [3, microbatch]
        self.microbatch_read = chosen = prefer_samples(plan, candidates, self.last_loss)
        return chosen

    def _activate(self, plan: LoopPlan) -> list[int]:
        """Let autograd see the active blocks only; the positions of their parameters."""
        low, high = find_block_range(plan, len(self.model), self.updates)
        for b, block in enumerate(self.model):
            block.requires_grad_(low <= b < high)
        return [i for i, b in enumerate(self.block_of) if low <= b < high]

    def _gradient(self, plan: LoopPlan, index: torch.Tensor, active: list[int]) -> tuple[float, Tensors]:
        """Mean loss of the whole microbatch, and the gradient of its kept samples in the active parameters."""
        inputs, labels = self._cast(self.task.train.inputs[index]), self._cast(self.task.train.labels[index])
        kept = self._kept(plan)
        if kept < self.microbatch:
            with torch.no_grad():
                scores = compute_losses(self.task.loss, self.model(inputs), labels)
            chosen = scores.argsort(descending=True, stable=True)[:kept]
            inputs, labels = inputs[chosen], labels[chosen]
        losses = compute_losses(self.task.loss, self.model(inputs), labels)
        gradient = torch.autograd.grad(losses.mean(), [self.parameters[i] for i in active])
        seen = losses.detach() if kept == self.microbatch else scores
        self.last_loss[index] = seen
        return seen.mean().item(), list(gradient)

    def _kept(self, plan: LoopPlan) -> int:
        """How many samples of a microbatch are back-propagated."""
        return count_kept_samples(plan, self.microbatch)

    def _tick_cost(self, plan: LoopPlan) -> float:
        low, _ = find_block_range(plan, len(self.model), self.updates)
        return charge_tick(plan, self.cost, self.microbatch, low)

    @torch.no_grad()
    def _update(self, plan: LoopPlan, active: list[int], *, probe: bool) -> None:
        gradient = [self.gradient_sum[i] / self.count for i in active]
        if probe and self.probe is not None:
            mean = [gathered / self.count for gathered in self.gradient_sum]  # 0 where a block is not active
            self.probe.measure(mean, self.momentum, [p.detach() for p in self.parameters])
        if plan.clip < math.inf:
            norm = math.sqrt(_dot(gradient, gradient))
            if norm > plan.clip:
                gradient = [g * (plan.clip / norm) for g in gradient]
        for b in {self.block_of[i] for i in active}:
            self.beta1_product[b] *= plan.momentum
            self.beta2_product[b] *= plan.second_momentum
        self._take_steps(plan, active, gradient)
        self._average_and_forget(plan)

    def _take_steps(self, plan: LoopPlan, active: list[int], gradient: Tensors) -> None:
        """Step with the blocks that took part in the same updates together: their averages have the same bias."""
        state = ([each[i] for i in active] for each in (self.momentum, self.second_moment))
        group = Parts([self.parameters[i] for i in active], gradient, *state)
        together: dict[tuple[float, float], list[int]] = {}
        for position, i in enumerate(active):
            b = self.block_of[i]
            together.setdefault((self.beta1_product[b], self.beta2_product[b]), []).append(position)
        for (product1, product2), positions in together.items():
            take_step(plan, group.pick(positions), 1 - product1, 1 - product2)

    @torch.no_grad()
    def _update_by(self, library: LibraryUpdate, plan: LoopPlan) -> None:
        for p, gathered in zip(self.parameters, self.gradient_sum, strict=True):
            p.grad = gathered / self.count
        if plan.clip < math.inf:
            nn.utils.clip_grad_norm_(self.parameters, plan.clip)
        library.step(self.loss_sum / self.count)
        if plan.average > 0:
            self._average_and_forget(plan)
        else:  # what is judged is asked of the optimizer, once before it is looked at
            self._forget_gradient()

    @torch.no_grad()
    def _keep_judged(self, library: LibraryUpdate) -> None:
        library.evaluate(True)
        for average, p in zip(self.average, self.parameters, strict=True):
            average.copy_(p)
        library.evaluate(False)

    def _average_and_forget(self, plan: LoopPlan) -> None:
        kept = 0.5 ** (self.count / plan.average) if plan.average > 0 else 0.0
        for average, p in zip(self.average, self.parameters, strict=True):
            average.lerp_(p, 1 - kept)
        self._forget_gradient()

    def _forget_gradient(self) -> None:
        for gathered in self.gradient_sum:
            gathered.zero_()
        self.updates, self.count, self.loss_sum = self.updates + 1, 0, 0.0

    def evaluate(self, split: Split) -> tuple[float, float]:
        """Mean loss and metric of the averaged weights on a split."""
        return self._evaluate(self.judged, split)

    @torch.no_grad()
    def _evaluate(self, model: nn.Module, split: Split) -> tuple[float, float]:
        outputs, labels = self._predict(model, split)
        return (
            compute_losses(self.task.loss, outputs, labels).mean().item(),
            compute_metric(self.task.loss, outputs, labels).item(),
        )

    def _predict(self, model: nn.Module, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs for a split, and its labels."""
        return model(self._cast(split.inputs)), self._cast(split.labels)

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Numbers, unless they are tokens or classes, in the loop's dtype."""
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def find_block_range(plan: LoopPlan, blocks: int, updates: int) -> BlockRange:
    """Which of so many blocks are active in the update after ``updates``."""
    length = min(max(round(plan.depth * blocks), 1), blocks)
    if plan.sweep == "joint":
        return blocks - length, blocks
    turn = updates % length
    block = blocks - length + turn if plan.sweep == "bottom-up" else blocks - 1 - turn
    return block, block + 1


def count_kept_samples(plan: LoopPlan, microbatch: int) -> int:
    """How many samples of a microbatch are back-propagated."""
    return min(max(round(plan.keep * microbatch), 1), microbatch)


def charge_tick(plan: LoopPlan, cost: Cost, microbatch: int, low: int) -> float:
    """What a tick costs in geq whose first active block is ``low``."""
    per_sample = cost.path[low] if plan.sweep == "joint" else cost.single[low]
    kept = count_kept_samples(plan, microbatch)
    return kept * per_sample + (cost.forward * microbatch if kept < microbatch else 0.0)


def prefer_samples(plan: LoopPlan, candidates: torch.Tensor, last_loss: torch.Tensor) -> torch.Tensor:
    """Of the candidates ``[candidates, microbatch]`` for each sample the one that ``order`` prefers."""
    if plan.order == "shuffled":
        return candidates[0]
    loss = last_loss[candidates]
    score = loss if plan.order == "hard-first" else -loss
    score = torch.where(loss == math.inf, math.inf, score)  # those never seen come first in either order
    return candidates.gather(0, score.argmax(dim=0)[None])[0]


def _copy(value: Any, into: Any = None) -> Any:
    """A copy of a number, a tensor, or a list of them; of tensors in the place of those of ``into``."""
    if isinstance(value, list):
        places = into if isinstance(into, list) and len(into) == len(value) else [None] * len(value)
        return [_copy(each, place) for each, place in zip(value, places, strict=True)]
    if not isinstance(value, torch.Tensor):
        return value
    fits = isinstance(into, torch.Tensor) and into.shape == value.shape
    return into.copy_(value.detach()) if fits else value.detach().clone()


def _dot(a: Tensors, b: Tensors) -> float:
    return sum(torch.dot(x.flatten(), y.flatten()).item() for x, y in zip(a, b, strict=True))
