"""Lanes: many inner training runs in lockstep on flat parameters. The fast path.

All lanes share one model spec and the same split sizes; each has its own task, seed, weights and plan. ``run`` advances
every lane by some ticks, ``evaluate`` measures the (averaged) weights on one of the splits.
"""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch

from loopwright.envs.engine.fusing import CHAINS_OF_HASHES, PARAMETER_PASSES, fuse, has_compiler
from loopwright.envs.engine.lane_state import COUNTERS, LaneState, Layout
from loopwright.envs.engine.matrix_rules import MatrixRules
from loopwright.envs.engine.randomness import make_key
from loopwright.envs.engine.scope import Scope, find_scope
from loopwright.envs.engine.tick import make_measure, make_read
from loopwright.envs.engine.update import Window, make_mask, make_update
from loopwright.envs.engine.weights import draw_weights
from loopwright.envs.loop.checks import MOST_SAMPLES, check_whole
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.plan import LoopPlan, stack_plans
from loopwright.envs.loop.telemetry import PROBE, WINDOW, Statistics
from loopwright.envs.loop.update_rules import ADAM_EPS
from loopwright.inner_tasks.task import SPLITS, Split, Task


class Lanes:
    """``lanes`` runs side by side.

    Args:
        template: any task of the shape (model spec and split sizes) that the lanes will run.
        lanes: how many, >= 1.
        microbatch: samples per tick.
        compile: fuse the tick with inductor; needs a C++ compiler and 10-30 s per (model, lanes), or a second where it
            was compiled before, by any process.
        device: where the lanes live.
        dtype: of weights and data; float64 is for checking, not for speed.

    Raises:
        LoopwrightError: lanes or microbatch below 1, more lanes than there is memory for, no compiler, or (in ``load``)
            a task of another shape.
    """

    def __init__(
        self,
        template: Task,
        lanes: int,
        *,
        microbatch: int = 16,
        compile: bool = False,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_whole("lanes", lanes, 1)
        check_whole("microbatch", microbatch, 1, MOST_SAMPLES)
        if compile and device == "cpu" and not has_compiler():
            raise LoopwrightError("compile=True needs a C++ compiler (g++ or clang++) on the PATH; found none")
        self.shape_key = template.shape_key
        self.lanes, self.microbatch, self.device, self.dtype = lanes, microbatch, torch.device(device), dtype
        self.layout = Layout(template.model.build())
        if self.device.type == "cpu":
            _check_memory(template, lanes, self.layout.parameters)
        self.splits: dict[str, tuple[torch.Tensor, torch.Tensor]] = {
            name: self._room_for(getattr(template, name)) for name in SPLITS
        }
        self.state = self.empty_state()
        self._key = (self.shape_key, lanes, microbatch, compile, self.device, dtype)
        self._template, self._compile = template, compile
        self._reads: dict[Scope, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {}
        self._mask: Callable[..., torch.Tensor] | None = None
        self._updates: dict[tuple[Scope, bool], Callable[..., torch.Tensor | None]] = {}
        self._nothing = torch.zeros(len(PROBE), lanes, dtype=dtype)
        self._rules = MatrixRules(self.layout, self.state.weights)
        self._window = Window(
            torch.zeros_like(self.state.weights), torch.zeros_like(self.state.weights),
            torch.zeros(lanes, device=self.device, dtype=dtype),
        )  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        """All but the functions, which are made again where they are used."""
        made: dict[str, Any] = {"_reads": {}, "_mask": None, "_updates": {}}
        return {name: value for name, value in vars(self).items() if name not in ("_measure", "_judge")} | made

    @cached_property
    def _measure(self) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
        """Loss and metric of some weights, inputs and labels, of any number of samples."""
        return make_measure(self._template.model, self._template.loss)

    @cached_property
    def _judge(self) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
        """The same for as many samples as the target split has."""
        example = [self.state.average, *self.splits["target"]]
        return fuse(self._measure, example, ("judge", *self._key)) if self._compile else self._measure

    def _find_read(self, scope: Scope) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
        """The first half of a tick, for this many lanes, of plans, inputs, labels and the state's tensors."""
        scope = max(scope, Scope.FLAT)  # a lean one reads as a flat one does
        if scope not in self._reads:
            read = make_read(self._template.model, self._template.loss, self.microbatch, scope)

            def read_flat(
                plans: torch.Tensor, inputs: torch.Tensor, labels: torch.Tensor, *state: torch.Tensor
            ) -> tuple[torch.Tensor, torch.Tensor]:
                return read(plans, inputs, labels, LaneState(*state))

            example = [self._example_plans(), *self.splits["train"], *(t.clone() for t in self.state.tensors())]
            key = ("read", scope, *self._key)
            self._reads[scope] = fuse(read_flat, example, key, CHAINS_OF_HASHES) if self._compile else read_flat
        return self._reads[scope]

    def _find_mask(self) -> Callable[..., torch.Tensor]:
        """What comes between the halves in the whole scope, of plans, gradient and the state's tensors."""
        if self._mask is None:
            mask = make_mask(self._template.model)

            def mask_flat(plans: torch.Tensor, gradient: torch.Tensor, *state: torch.Tensor) -> torch.Tensor:
                return mask(plans, gradient, LaneState(*state))

            example = [self._example_plans(), *(t.clone() for t in (self.state.weights, *self.state.tensors()))]
            self._mask = fuse(mask_flat, example, ("mask", *self._key)) if self._compile else mask_flat
        return self._mask

    def _find_update(self, scope: Scope, probe: bool) -> Callable[..., torch.Tensor | None]:
        """The second half of a tick, for this many lanes: of plans, losses, gradient, directions, window and state."""
        if (scope, probe) not in self._updates:
            update = make_update(self._template.model, self.microbatch, scope, probe)
            kept = len(self._window) if probe else 0

            def update_flat(
                plans: torch.Tensor, losses: torch.Tensor, gradient: torch.Tensor, directions: torch.Tensor,
                *tensors: torch.Tensor,
            ) -> torch.Tensor | None:  # fmt: skip
                window = Window(*tensors[:kept]) if probe else None
                return update(plans, losses, gradient, directions, window, LaneState(*tensors[kept:]))

            losses = torch.zeros(self.lanes, self.microbatch, device=self.device, dtype=self.dtype)
            tensors = [t.clone() for t in (*(self._window if probe else ()), *self.state.tensors())]
            gradients = (torch.zeros_like(self.state.weights) for _ in range(2))
            example = [self._example_plans(), losses, *gradients, *tensors]
            key = ("update", scope, probe, *self._key)
            self._updates[scope, probe] = (
                fuse(update_flat, example, key, PARAMETER_PASSES) if self._compile else update_flat
            )
        return self._updates[scope, probe]

    def _example_plans(self) -> torch.Tensor:
        return stack_plans([LoopPlan()] * self.lanes, self.dtype).to(self.device)

    def _room_for(self, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
        """Zeros for the inputs and the labels of every lane; numbers that are not counts have the lanes' dtype."""
        inputs, labels = (
            torch.zeros(
                self.lanes,
                *tensor.shape,
                device=self.device,
                dtype=self.dtype if tensor.is_floating_point() else tensor.dtype,
            )
            for tensor in (split.inputs, split.labels)
        )
        return inputs, labels

    def empty_state(self, lanes: int | None = None) -> LaneState:
        """Zeros in the shape of ``state``, or of so many lanes: what a run starts from, but for weights and key."""
        samples = self.splits["train"][0].shape[1]
        return LaneState.empty(lanes or self.lanes, self.layout, samples, self.microbatch, self.device, self.dtype)

    def warm_up(self) -> None:
        """Before anything is loaded: compile what most plans need, if it is to be compiled at all."""
        for batch in (1, 2):
            self.run(stack_plans([LoopPlan(batch=batch)] * self.lanes), WINDOW + 1)
        self.evaluate("target")
        self.state = self.empty_state()

    def load(self, lanes: Sequence[int], tasks: Sequence[Task], seeds: Sequence[int]) -> None:
        """Start a new run in each of ``lanes``: its task's data, fresh weights and streams from its seed."""
        for lane, task, seed in zip(lanes, tasks, seeds, strict=True):
            if task.shape_key != self.shape_key:
                raise LoopwrightError(f"task {task.name} has shape {task.shape_key}, these lanes run {self.shape_key}")
            for name in SPLITS:
                inputs, labels = self.splits[name]
                split = getattr(task, name)
                inputs[lane].copy_(split.inputs)
                labels[lane].copy_(split.labels)
            fresh = self.empty_state(1)
            fresh.weights[0] = draw_weights(task, seed)
            fresh.average[0] = fresh.weights[0]
            fresh.counters[COUNTERS.index("key")] = make_key(torch.tensor([seed]))
            self.state.copy_lanes(torch.tensor([lane]), fresh, torch.tensor([0]))

    def run(self, plans: torch.Tensor, ticks: int) -> Statistics:
        """Advance every lane by ``ticks`` under ``plans [fields, lanes]``; what was measured meanwhile."""
        plans = plans.to(self.device, self.dtype)
        self.state.sums.zero_()
        self._window.seen.zero_()
        scope, begins = find_scope(plans, self.state.scalars), max(ticks - WINDOW, 0)
        with torch.no_grad():
            for _ in range(begins):
                self._tick(plans, scope, probe=False)
            measured = [self._tick(plans, scope, probe=True) for _ in range(begins, ticks)]
        return Statistics(self.state.sums.cpu().numpy().copy(), torch.stack(measured).cpu().numpy())

    def _tick(self, plans: torch.Tensor, scope: Scope, *, probe: bool) -> torch.Tensor:
        """One tick of every lane; if it is to ``probe``, what the window measures ``[len(PROBE), lanes]``."""
        state = self.state
        losses, gradient = self._find_read(scope)(plans, *self.splits["train"], *state.tensors())
        state.last_loss.scatter_(1, state.microbatch, losses)
        if scope is Scope.WHOLE:
            gradient = self._find_mask()(plans, gradient, *state.tensors())
        directions = self._rules.direct(plans, gradient, state)
        window = self._window if probe else ()
        measured = self._find_update(scope, probe)(plans, losses, gradient, directions, *window, *state.tensors())
        return self._nothing if measured is None else measured

    @torch.no_grad()
    def step_ratio(self) -> torch.Tensor:
        """How many times as long adamw's step is as sgd's, at the same learning rate, ``[lanes]``; 1 before any update.

        Both are measured on the state as it stands, which the two optimizers share.
        """
        products1, products2 = self.state.scalars[1:].chunk(2)
        bias1, root2 = self.layout.expand((1 - products1).T), self.layout.expand((1 - products2).sqrt().T)
        adamw = self.state.momentum / bias1 / (self.state.second_moment.sqrt() / root2 + ADAM_EPS)
        ratio = adamw.nan_to_num(nan=0.0).norm(dim=1) / self.state.momentum.norm(dim=1)
        return torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0)

    @torch.no_grad()
    def evaluate(self, split: str, indices: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean loss ``[lanes]`` and metric ``[lanes]`` (``inner_tasks.losses``) of the evaluated weights on a split.

        ``indices [lanes, n]`` restricts it to some samples per lane. Where a plan's ``average`` is off, the average is
        the weights themselves.
        """
        inputs, labels = self.splits[split]
        if indices is not None:
            lane = torch.arange(self.lanes, device=self.device)[:, None]
            inputs, labels = inputs[lane, indices], labels[lane, indices]
        measure = self._judge if split == "target" and indices is None else self._measure
        loss, metric = measure(self.state.average, inputs, labels)
        return loss, metric


def _check_memory(template: Task, lanes: int, parameters: int) -> None:
    """Raise ``LoopwrightError`` where the lanes' data and state alone are more than the machine's memory.

    Asked for, such memory is often given at first, and the process killed when it is used.
    """
    splits = [getattr(template, name) for name in SPLITS]
    tensors = [tensor for split in splits for tensor in (split.inputs, split.labels)]
    needed = lanes * (sum(tensor.nbytes for tensor in tensors) + 5 * 4 * parameters)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise LoopwrightError(
            f"lanes must be {memory * lanes // needed} or less for tasks of this shape: {lanes} take "
            f"{needed / 1e9:.0f} GB, and this machine has {memory / 1e9:.0f}"
        )
