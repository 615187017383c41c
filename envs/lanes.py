"""Lanes: many inner training runs in lockstep on flat parameters. The fast path.

All lanes share one model spec and the same split sizes; each has its own task, seed, weights and plan. ``run`` advances
every lane by some ticks, ``evaluate`` measures the (averaged) weights on one of the splits.
"""

import shutil
from collections.abc import Callable, Sequence

import torch
from torch.func import functional_call, vmap
from torch.nn import functional as F

from loopwright.envs.plan import LoopPlan, stack_plans
from loopwright.envs.randomness import make_key
from loopwright.envs.tick import LaneState, Layout, make_tick
from loopwright.inner_tasks.errors import LoopwrightError
from loopwright.inner_tasks.task import SPLITS, Task

_TICKS: dict[tuple[object, ...], Callable[..., None]] = {}


def compiler_available() -> bool:
    """Whether ``torch.compile`` can build kernels for the CPU here: it needs a C++ compiler."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def initial_weights(task: Task, seed: int) -> torch.Tensor:
    """The flat initial weights ``[parameters]`` of a run: PyTorch's default initialisation times the task's scale."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = task.model.build()
    return torch.cat([p.detach().flatten() for p in model.parameters()]) * task.initial_scale


class Lanes:
    """``lanes`` runs side by side.

    Args:
        template: any task of the shape (model spec and split sizes) that the lanes will run.
        lanes: how many, >= 1.
        microbatch: samples per tick.
        compile: fuse the tick with ``torch.compile``; needs a C++ compiler and 10-30 s per (model, lanes), less when
            inductor's cache is warm.
        device: where the lanes live.

    Raises:
        LoopwrightError: lanes or microbatch below 1, no compiler, or (in ``load``) a task of another shape.
    """

    def __init__(
        self, template: Task, lanes: int, *, microbatch: int = 16, compile: bool = False, device: str = "cpu"
    ) -> None:
        for name, value in (("lanes", lanes), ("microbatch", microbatch)):
            if value < 1:
                raise LoopwrightError(f"{name} must be 1 or more, got {value}")
        if compile and device == "cpu" and not compiler_available():
            raise LoopwrightError("compile=True needs a C++ compiler (g++ or clang++) on the PATH; found none")
        self.shape_key = template.shape_key
        self.lanes, self.microbatch, self.device = lanes, microbatch, torch.device(device)
        self._model = template.model.build().to(self.device)
        self.layout = Layout(self._model)
        self.state = LaneState.empty(lanes, self.layout.parameters, self.device)
        self.splits = {
            name: (
                torch.zeros(lanes, size, *template.model.input_shape, device=self.device),
                torch.zeros(lanes, size, dtype=torch.int64, device=self.device),
            )
            for name, size in zip(SPLITS, self.shape_key[1], strict=True)
        }
        self._tick = self._shared_tick(template, compile)

    def _shared_tick(self, template: Task, compile: bool) -> Callable[..., None]:
        # One compiled function per shape for the whole process: a second Lanes of that shape starts at once.
        key = (self.shape_key, self.lanes, self.microbatch, compile, self.device)
        if key not in _TICKS:
            tick = make_tick(template.model, self.microbatch)
            _TICKS[key] = self._fused(tick) if compile else tick
        return _TICKS[key]

    def _fused(self, tick: Callable[..., None]) -> Callable[..., None]:
        from torch._inductor import compile as inductor_compile  # seconds to import, and of use only here
        from torch.fx.experimental.proxy_tensor import make_fx

        # Shapes never change, so the tick is traced once and handed to inductor: dynamo's guards would cost a fifth
        # of the throughput, and its cache holds only eight shapes of one function.
        example = [stack_plans([LoopPlan()] * self.lanes).to(self.device), *self.splits["train"]]
        example += [tensor.clone() for tensor in self.state.tensors()]
        graph = make_fx(tick)(*example)
        compiled: Callable[..., None] = inductor_compile(graph, example, options={"size_asserts": False})
        return compiled

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
            fresh = LaneState.empty(1, self.layout.parameters, self.device)
            fresh.weights[0] = initial_weights(task, seed)
            fresh.average[0] = fresh.weights[0]
            fresh.counters[0] = make_key(torch.tensor([seed]))
            for row, value in zip(self.state.rows(), fresh.rows(), strict=True):
                row[lane] = value[0]

    def run(self, plans: torch.Tensor, ticks: int) -> torch.Tensor:
        """Advance every lane by ``ticks`` under ``plans [len(PLAN_FIELDS), lanes]``; the sums ``[len(SUMS), lanes]``."""
        self.state.sums.zero_()
        inputs, labels = self.splits["train"]
        tensors = self.state.tensors()
        with torch.no_grad():
            for _ in range(ticks):
                self._tick(plans, inputs, labels, *tensors)
        return self.state.sums.clone()

    @torch.no_grad()
    def evaluate(self, split: str, indices: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean loss ``[lanes]`` (nats) and accuracy ``[lanes]`` of the evaluated weights on a split.

        ``indices [lanes, n]`` restricts it to some samples per lane. Where a plan's ``average`` is off, the average is
        the weights themselves.
        """
        inputs, labels = self.splits[split]
        if indices is not None:
            lane = torch.arange(self.lanes, device=self.device)[:, None]
            inputs, labels = inputs[lane, indices], labels[lane, indices]
        logits = vmap(self._forward)(self.layout.split(self.state.average), inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(1)
        return loss, (logits.argmax(-1) == labels).float().mean(1)

    def _forward(self, parameters: tuple[torch.Tensor, ...], inputs: torch.Tensor) -> torch.Tensor:
        named = dict(zip(self.layout.names, parameters, strict=True))
        logits: torch.Tensor = functional_call(self._model, named, (inputs,))
        return logits
