"""Lanes: many inner training runs in lockstep on flat parameters. The fast path.

All lanes share one model spec and the same split sizes; each has its own task, seed, weights and plan. ``run`` advances
every lane by some ticks, ``evaluate`` measures the (averaged) weights on one of the splits.
"""

from collections.abc import Callable, Sequence

import torch

from loopwright.envs.engine.fusing import CHAINS_OF_HASHES, PARAMETER_PASSES, fuse, has_compiler
from loopwright.envs.engine.lane_state import COUNTERS, LaneState, Layout
from loopwright.envs.engine.matrix_rules import MatrixRules
from loopwright.envs.engine.randomness import make_key
from loopwright.envs.engine.tick import make_measure, make_read
from loopwright.envs.engine.update import make_update
from loopwright.envs.engine.weights import draw_weights
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.plan import LoopPlan, stack_plans
from loopwright.envs.loop.update_rules import ADAM_EPS
from loopwright.inner_tasks.task import SPLITS, Split, Task


class Lanes:
    """``lanes`` runs side by side.

    Args:
        template: any task of the shape (model spec and split sizes) that the lanes will run.
        lanes: how many, >= 1.
        microbatch: samples per tick.
        compile: fuse the tick with ``torch.compile``; needs a C++ compiler and 10-30 s per (model, lanes), less when
            inductor's cache is warm.
        device: where the lanes live.
        dtype: of weights and data; float64 is for checking, not for speed.

    Raises:
        LoopwrightError: lanes or microbatch below 1, no compiler, or (in ``load``) a task of another shape.
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
        for name, value in (("lanes", lanes), ("microbatch", microbatch)):
            if value < 1:
                raise LoopwrightError(f"{name} must be 1 or more, got {value}")
        if compile and device == "cpu" and not has_compiler():
            raise LoopwrightError("compile=True needs a C++ compiler (g++ or clang++) on the PATH; found none")
        self.shape_key = template.shape_key
        self.lanes, self.microbatch, self.device, self.dtype = lanes, microbatch, torch.device(device), dtype
        self.layout = Layout(template.model.build())
        self.splits: dict[str, tuple[torch.Tensor, torch.Tensor]] = {
            name: self._room_for(getattr(template, name)) for name in SPLITS
        }
        self.state = self.empty_state()
        self._key = (self.shape_key, lanes, microbatch, compile, self.device, dtype)
        self._read = self._make_read(template, compile)
        self._update = self._make_update(template, compile)
        judge_example = [self.state.average, *self.splits["target"]]
        self._measure = make_measure(template.model, template.loss)
        self._judge = fuse(self._measure, judge_example, ("judge", *self._key)) if compile else self._measure

    def _make_read(self, template: Task, compile: bool) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
        """The first half of a tick, for this many lanes, of plans, inputs, labels and the state's tensors."""
        read = make_read(template.model, template.loss, self.microbatch)

        def read_flat(
            plans: torch.Tensor, inputs: torch.Tensor, labels: torch.Tensor, *state: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return read(plans, inputs, labels, LaneState(*state))

        if not compile:
            return read_flat
        example = [self._example_plans(), *self.splits["train"], *(t.clone() for t in self.state.tensors())]
        return fuse(read_flat, example, ("read", *self._key), CHAINS_OF_HASHES)

    def _make_update(self, template: Task, compile: bool) -> Callable[..., None]:
        """The second half of a tick, for this many lanes: of plans, losses, gradient and the state's tensors."""
        rules = MatrixRules(self.layout, self.state.weights)
        update = make_update(template.model, self.microbatch)

        def update_flat(
            plans: torch.Tensor,
            losses: torch.Tensor,
            gradient: torch.Tensor,
            directions: torch.Tensor,
            *state: torch.Tensor,
        ) -> None:
            update(plans, losses, gradient, directions, LaneState(*state))

        run = update_flat
        if compile:
            losses = torch.zeros(self.lanes, self.microbatch, device=self.device, dtype=self.dtype)
            state = [t.clone() for t in self.state.tensors()]
            example = [self._example_plans(), losses, *(torch.zeros_like(self.state.weights) for _ in range(2)), *state]
            run = fuse(update_flat, example, ("update", *self._key), PARAMETER_PASSES)

        def direct_and_update(
            plans: torch.Tensor, losses: torch.Tensor, gradient: torch.Tensor, *state: torch.Tensor
        ) -> None:
            run(plans, losses, gradient, rules.direct(plans, gradient, LaneState(*state)), *state)

        return direct_and_update

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

    def run(self, plans: torch.Tensor, ticks: int) -> torch.Tensor:
        """Advance every lane by ``ticks`` under ``plans [fields, lanes]``; returns the sums ``[len(SUMS), lanes]``."""
        plans = plans.to(self.device, self.dtype)
        self.state.sums.zero_()
        inputs, labels = self.splits["train"]
        state = self.state.tensors()
        with torch.no_grad():
            for _ in range(ticks):
                losses, gradient = self._read(plans, inputs, labels, *state)
                self.state.last_loss.scatter_(1, self.state.microbatch, losses)
                self._update(plans, losses, gradient, *state)
        return self.state.sums.clone()

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
