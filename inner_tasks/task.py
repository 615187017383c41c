"""Task: what a training run trains.

A task has three splits. ``train`` gives gradients; ``control`` may be looked at by a controller, at a charge;
``target`` belongs to the harness alone: it decides whether the target was hit, and no observation depends on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.inner_tasks.losses import METRICS, LossName
from loopwright.inner_tasks.models import ModelSpec, find_output_shape

ShapeKey = tuple[ModelSpec, LossName, tuple[int, ...]]
SPLITS: tuple[Literal["train", "control", "target"], ...] = ("train", "control", "target")


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs ``[N, *input_shape]``, float32 or int64 tokens, and labels ``[N, ...]``: int64 classes, or float32."""

    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Calibration:
    """A task's target, and how fast its best static configuration gets there (see ``envs.episode.calibration``).

    ``curve`` holds (geq, loss) pairs, geq rising and loss falling strictly: the median over re-runs of the running
    minimum of the target-split loss, ending at (``cost``, ``target``). It defines E(L) in the reward. ``winner`` is the
    best configuration, as ``envs.episode.calibration.StaticConfiguration`` writes itself, and ``easier`` a second
    target, what the median configuration ends with; None where they were not kept. The search was so many ``decisions``
    long; ``search`` is its number.
    """

    target: float
    cost: float
    curve: tuple[tuple[float, float], ...]
    winner: Mapping[str, Any] | None = field(default=None, hash=False)
    easier: float | None = None
    decisions: int = 40
    search: int = 1

    def __post_init__(self) -> None:
        geq, loss = zip(*self.curve, strict=True) if self.curve else ((), ())
        if len(geq) < 2 or np.any(np.diff(geq) <= 0) or np.any(np.diff(loss) >= 0):
            raise LoopwrightError(f"a calibration curve needs 2 or more points, geq rising, loss falling: {self.curve}")
        if self.curve[-1] != (self.cost, self.target):
            raise LoopwrightError(f"a calibration curve must end at {(self.cost, self.target)}, not {self.curve[-1]}")


@dataclass(frozen=True, eq=False)
class Task:
    """One inner training problem: data in three splits, a model, a loss, the scale of its initial weights, a target.

    ``name`` is ``family:seed``. The loss also says which metric there is (``inner_tasks.losses``); ``repeats`` is how
    often each sample is in the training split. Raises ``LoopwrightError`` where the parts do not fit each other.
    """

    name: str
    model: ModelSpec
    train: Split
    control: Split
    target: Split
    loss: LossName = "cross-entropy"
    initial_scale: float = 1.0
    calibration: Calibration | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.repeats <= len(self.train):
            raise LoopwrightError(f"task {self.name}: repeats must be 1 to {len(self.train)}; got {self.repeats}")
        if self.loss not in METRICS:
            raise UnknownNameError("loss", self.loss, list(METRICS))
        if not (np.isfinite(self.initial_scale) and self.initial_scale > 0):
            raise LoopwrightError(f"task {self.name}: initial_scale must be finite and above 0: {self.initial_scale}")
        for split_name in SPLITS:
            split: Split = getattr(self, split_name)
            where = f"task {self.name}, split {split_name}"
            if len(split) == 0 or len(split) != len(split.labels):
                raise LoopwrightError(
                    f"{where}: {len(split)} inputs and {len(split.labels)} labels; want N and N, N > 0"
                )
            self._check_inputs(split.inputs, where)
            self._check_labels(split.labels, where)

    def _check_inputs(self, inputs: torch.Tensor, where: str) -> None:
        if tuple(inputs.shape[1:]) != self.model.input_shape:
            raise LoopwrightError(
                f"{where}: sample shape {tuple(inputs.shape[1:])}, the model takes {self.model.input_shape}"
            )
        if inputs.dtype != self.model.input_dtype:
            raise LoopwrightError(f"{where}: {inputs.dtype} inputs, the model takes {self.model.input_dtype}")
        if not torch.isfinite(inputs).all():
            raise LoopwrightError(f"{where}: inputs hold NaN or infinity")
        vocabulary = self.model.vocabulary
        if vocabulary is not None and (inputs.min() < 0 or inputs.max() >= vocabulary):
            raise LoopwrightError(f"{where}: tokens must lie in [0, {vocabulary})")

    def _check_labels(self, labels: torch.Tensor, where: str) -> None:
        outputs = find_output_shape(self.model)
        wanted, shape = (torch.int64, outputs[:-1]) if self.loss == "cross-entropy" else (torch.float32, outputs)
        if labels.dtype != wanted or tuple(labels.shape[1:]) != shape:
            raise LoopwrightError(
                f"{where}: labels are {labels.dtype} of shape [N, {str(list(labels.shape[1:]))[1:]}; {self.loss} on "
                f"outputs [N, {str(list(outputs))[1:]} wants {wanted} of shape [N, {str(list(shape))[1:]}"
            )
        if self.loss == "cross-entropy" and (labels.min() < 0 or labels.max() >= outputs[-1]):
            raise LoopwrightError(f"{where}: labels must lie in [0, {outputs[-1]})")
        if not torch.isfinite(labels).all():
            raise LoopwrightError(f"{where}: labels hold NaN or infinity")

    @property
    def metric(self) -> str:
        """What ``metric`` in results is for this task: "accuracy" or "R2"."""
        return METRICS[self.loss]

    @property
    def distinct_samples(self) -> int:
        """How many different samples there are to train on."""
        return len(self.train) // self.repeats

    @property
    def shape_key(self) -> "ShapeKey":
        """Tasks with equal keys can share a ``Lanes``: same model, same loss, same split sizes."""
        return self.model, self.loss, tuple(len(getattr(self, name)) for name in SPLITS)

    def with_calibration(self, calibration: Calibration | None) -> "Task":
        return replace(self, calibration=calibration)
