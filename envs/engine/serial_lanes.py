"""SerialLanes: a few runs with the state and the samples of ``Lanes``, one after the other, without vmap or a compiler.

Weights, moments and gradient of a run are its rows of the same flat state, so that all that reads or restores a lane
works as it is: the model's parameters are views of them. What a plan leaves out is not done. Eager, this is many times
as fast as ``Lanes`` for one run, and as fast for some twenty. Tests hold it to ``ReferenceLoop``.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from loopwright.envs.engine.cost import measure_cost
from loopwright.envs.engine.lane_state import COUNTERS
from loopwright.envs.engine.lanes import Lanes
from loopwright.envs.engine.randomness import draw_candidates
from loopwright.envs.engine.reference import (
    BlockRange,
    charge_tick,
    count_kept_samples,
    find_block_range,
    prefer_samples,
)
from loopwright.envs.loop.averages import Floats
from loopwright.envs.loop.plan import LoopPlan, unstack_plans
from loopwright.envs.loop.probe import Probe
from loopwright.envs.loop.telemetry import PROBE, SUMS, TINY, WINDOW, Statistics
from loopwright.envs.loop.update_rules import MATRIX_RULES, Parts, take_step
from loopwright.inner_tasks.losses import compute_losses, compute_metric
from loopwright.inner_tasks.task import Task

_KEY, _TICKS, _CURSOR, _USES, _UPDATES = range(len(COUNTERS))


class LaneViews(NamedTuple):
    """One lane: rows of the state, and networks and parts of it that are views of them."""

    weights: torch.Tensor
    momentum: torch.Tensor
    second_moment: torch.Tensor
    gathered: torch.Tensor
    average: torch.Tensor
    last_loss: torch.Tensor
    model: nn.Sequential  # with the weights; its gradients are what is gathered
    judged: nn.Sequential  # with their average
    parts: Parts  # a tensor for each parameter
    probe: Probe


class SerialLanes(Lanes):
    """``Lanes`` on the CPU that are trained one after the other, and not compiled."""

    def __init__(self, template: Task, lanes: int, **options: Any) -> None:
        """As those of ``Lanes``."""
        super().__init__(template, lanes, **options)
        self._cost = measure_cost(template.model)
        self._owner = [int(name.partition(".")[0]) for name in self.layout.names]
        sizes = zip(self._owner, self.layout.sizes, strict=True)
        ends = np.zeros(self.layout.blocks + 1, int)
        np.add.at(ends, *np.array([(owner + 1, size) for owner, size in sizes]).T)
        self._begins = np.cumsum(ends).tolist()  # where the parameters of each block begin, and where all end

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_runs"}

    @cached_property
    def _runs(self) -> list[LaneViews]:
        state, runs = self.state, []
        flats = (state.weights, state.momentum, state.second_moment, state.gradient_sum, state.average)
        for lane in range(self.lanes):
            rows = [flat[lane] for flat in flats]
            weights, momentum, second, gathered, average = (
                [piece[0] for piece in self.layout.split(row[None])] for row in rows
            )
            model, judged = self._build(weights), self._build(average).requires_grad_(False)
            for parameter, gradient in zip(model.parameters(), gathered, strict=True):
                parameter.grad = gradient
            parts, probe = Parts(weights, gathered, momentum, second), Probe(rows[:1], None)
            row = (rows[0], rows[1], rows[2], rows[3], rows[4], state.last_loss[lane])
            runs.append(LaneViews(*row, model, judged, parts, probe))
        return runs

    def _build(self, pieces: Sequence[torch.Tensor]) -> nn.Sequential:
        """The network with these as its parameters."""
        model = self._template.model.build().to(self.dtype)
        for parameter, piece in zip(model.parameters(), pieces, strict=True):
            parameter.data = piece
        return model

    def run(self, plans: torch.Tensor, ticks: int) -> Statistics:
        """Advance every lane by ``ticks`` under ``plans [fields, lanes]``; what was measured meanwhile."""
        sums, windows = zip(*(self._advance(lane, plan, ticks) for lane, plan in enumerate(unstack_plans(plans))),
                            strict=True)  # fmt: skip
        # As many rows as ticks in the window, of which those without an update are 0.
        window = np.zeros((min(ticks, WINDOW), len(PROBE), self.lanes), windows[0].dtype)
        for lane, own in enumerate(windows):
            window[: len(own), :, lane] = own[:, :, 0]
        return Statistics(np.array(sums).T, window)  # exact: deviations are small differences

    def _advance(self, lane: int, plan: LoopPlan, ticks: int) -> tuple[list[float], Floats]:
        """The sums of a lane, and what its window has measured ``[updates, len(PROBE), 1]``."""
        run = self._runs[lane]
        inputs, labels = (split[lane] for split in self.splits["train"])
        counters, scalars = self.state.counters[:, lane].tolist(), self.state.scalars[:, lane].tolist()
        chosen, candidates = self._plan_microbatches(plan, counters, ticks, len(labels))
        index, path = self.state.microbatch[lane].clone(), None
        losses, geq, begun = [], 0.0, counters[_UPDATES]
        run.probe.begin()
        for tick, number in enumerate(chosen):
            wanted = find_block_range(plan, self.layout.blocks, counters[_UPDATES])
            if wanted != path:
                path = wanted
                self._activate(run, path)
            if number is not None:
                index = prefer_samples(plan, candidates[:, number], run.last_loss)
            losses.append(
                self._backward(run, plan, inputs.index_select(0, index), labels.index_select(0, index), index)
            )
            geq += charge_tick(plan, self._cost, self.microbatch, path[0])
            scalars[0] += 1
            if scalars[0] >= plan.batch:
                self._update(run, plan, path, scalars, probe=tick >= ticks - WINDOW)
                counters[_UPDATES] += 1
        counters[_TICKS] += ticks
        self.state.microbatch[lane] = index
        self.state.counters[:, lane] = torch.tensor(counters)
        self.state.scalars[:, lane] = torch.tensor(scalars, dtype=self.dtype)
        loss = torch.stack(losses).mean(1)
        sums = [ticks, geq, float(loss.sum()), float((loss * loss).sum()), counters[_UPDATES] - begun]
        assert len(sums) == len(SUMS)
        return sums, run.probe.read()

    @torch.no_grad()
    def evaluate(self, split: str, indices: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """As that of ``Lanes``."""
        kind, found = self._template.loss, []
        for lane, run in enumerate(self._runs):
            inputs, labels = (own[lane] if indices is None else own[lane, indices[lane]] for own in self.splits[split])
            outputs = _pass_through(run.judged, inputs)
            found.append((compute_losses(kind, outputs, labels).mean(), compute_metric(kind, outputs, labels)))
        loss, metric = (torch.stack(own) for own in zip(*found, strict=True))
        return loss, metric

    def _plan_microbatches(
        self, plan: LoopPlan, counters: list[int], ticks: int, population: int
    ) -> tuple[list[int | None], torch.Tensor]:
        """For every tick the number of the candidates it chooses from, or None where it reads its samples again.

        The candidates are ``[CANDIDATES, numbers, microbatch]``. Moves the counters on.
        """
        first, chosen = counters[_CURSOR] + 1, []
        for _ in range(ticks):
            renew = counters[_USES] >= plan.echo
            counters[_CURSOR] += renew
            counters[_USES] = 1 if renew else counters[_USES] + 1
            chosen.append(counters[_CURSOR] - first if renew else None)
        cursors = torch.arange(first, counters[_CURSOR] + 1)
        drawn = draw_candidates(torch.tensor(counters[_KEY]), cursors, self.microbatch, population)
        return chosen, torch.stack(drawn)

    def _activate(self, run: LaneViews, path: BlockRange) -> None:
        """Let autograd see the active blocks alone; what the others had gathered is forgotten."""
        low, high = path
        for parameter, own in zip(run.model.parameters(), self._owner, strict=True):
            parameter.requires_grad_(low <= own < high)
        run.gathered[: self._begins[low]].zero_()
        run.gathered[self._begins[high] :].zero_()

    def _backward(
        self, run: LaneViews, plan: LoopPlan, inputs: torch.Tensor, labels: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """Add the gradient of a microbatch's kept samples to what is gathered; the losses of all."""
        kind, kept, seen = self._template.loss, count_kept_samples(plan, self.microbatch), None
        if kept < self.microbatch:
            with torch.no_grad():
                seen = compute_losses(kind, _pass_through(run.model, inputs), labels)
            most = seen.argsort(descending=True, stable=True)[:kept]
            inputs, labels = inputs[most], labels[most]
        with torch.enable_grad():
            losses = compute_losses(kind, _pass_through(run.model, inputs), labels)
            # That of their mean, without an operation for it.
            losses.backward(torch.full_like(losses, 1 / losses.numel()))  # type: ignore[no-untyped-call]
        seen = losses.detach() if seen is None else seen
        run.last_loss[index] = seen
        return seen

    @torch.no_grad()
    def _update(self, run: LaneViews, plan: LoopPlan, path: BlockRange, scalars: list[float], *, probe: bool) -> None:
        """An update with the gradient of ``scalars[0]`` microbatches, which is forgotten."""
        count, blocks = scalars[0], self.layout.blocks
        if count > 1:
            run.gathered.div_(count)
        if probe:
            run.probe.measure([run.gathered], [run.momentum], [run.weights])
        if plan.clip < math.inf:
            norm = math.sqrt(float(torch.dot(run.gathered, run.gathered)) + TINY)
            if norm > plan.clip:
                run.gathered.mul_(plan.clip / norm)
        together: dict[tuple[float, float], list[int]] = {}
        for b in range(*path):
            scalars[1 + b] *= plan.momentum
            scalars[1 + blocks + b] *= plan.second_momentum
            together.setdefault((scalars[1 + b], scalars[1 + blocks + b]), []).append(b)
        for (product1, product2), own in together.items():
            take_step(plan, self._find_parts(run, plan, own, path), 1 - product1, 1 - product2)
        if plan.average > 0:
            run.average.lerp_(run.weights, 1 - 0.5 ** (count / plan.average))
        else:
            run.average.copy_(run.weights)
        run.gathered.zero_()
        scalars[0] = 0.0

    def _find_parts(self, run: LaneViews, plan: LoopPlan, blocks: list[int], path: BlockRange) -> Parts:
        """What a step of these blocks is made on: their parameters, or where the rule knows no matrices stretches."""
        if plan.optimizer in MATRIX_RULES:
            return run.parts.pick(i for i, block in enumerate(self._owner) if block in blocks)
        stretches = [path] if len(blocks) == path[1] - path[0] else [(b, b + 1) for b in blocks]
        slices = [slice(self._begins[low], self._begins[high]) for low, high in stretches]
        rows = (run.weights, run.gathered, run.momentum, run.second_moment)
        return Parts(*([row[own] for own in slices] for row in rows))


def _pass_through(model: nn.Sequential, inputs: torch.Tensor) -> torch.Tensor:
    """What the network makes of them, without the time that calling modules takes: nobody has hooks here."""
    for layer in model:
        inputs = _pass_through(layer, inputs) if type(layer) is nn.Sequential else layer.forward(inputs)
    return inputs
