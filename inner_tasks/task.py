"""Task, TaskFamily and the registry: what a training run trains, and where new ones come from.

A task has three splits. ``train`` gives gradients; ``control`` may be looked at by a controller, at a charge;
``target`` belongs to the harness alone: it decides whether the target was hit, and no observation depends on it.
"""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from loopwright.inner_tasks.errors import LoopwrightError, UnknownNameError
from loopwright.inner_tasks.models import ModelSpec

SPLITS: tuple[Literal["train", "control", "target"], ...] = ("train", "control", "target")
Kind = Literal["image", "tabular", "generated"]


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs ``[N, *input_shape]`` float32 and class labels ``[N]`` int64."""

    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Calibration:
    """A task's target, and how fast its best static configuration gets there (see ``envs.calibration``).

    ``curve`` holds (geq, loss) pairs, geq rising and loss falling strictly: the median over re-runs of the running
    minimum of the target-split loss, ending at (``cost``, ``target``). It defines E(L) in the reward.
    """

    target: float
    cost: float
    curve: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        geq, loss = zip(*self.curve, strict=True) if self.curve else ((), ())
        if len(geq) < 2 or np.any(np.diff(geq) <= 0) or np.any(np.diff(loss) >= 0):
            raise LoopwrightError(f"a calibration curve needs 2 or more points, geq rising, loss falling: {self.curve}")
        if self.curve[-1] != (self.cost, self.target):
            raise LoopwrightError(f"a calibration curve must end at {(self.cost, self.target)}, not {self.curve[-1]}")


@dataclass(frozen=True, eq=False)
class Task:
    """One inner training problem: data in three splits, a model spec, the scale of its initial weights, a target.

    The loss is the mean cross-entropy in nats, the metric is accuracy. ``name`` is ``family:seed``.
    """

    name: str
    model: ModelSpec
    train: Split
    control: Split
    target: Split
    classes: int
    initial_scale: float = 1.0
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.initial_scale) and self.initial_scale > 0):
            raise LoopwrightError(f"task {self.name}: initial_scale must be finite and above 0: {self.initial_scale}")
        for split_name in SPLITS:
            split: Split = getattr(self, split_name)
            where = f"task {self.name}, split {split_name}"
            if len(split) == 0 or len(split) != len(split.labels):
                raise LoopwrightError(
                    f"{where}: {len(split)} inputs and {len(split.labels)} labels; want N and N, N > 0"
                )
            if tuple(split.inputs.shape[1:]) != self.model.input_shape:
                raise LoopwrightError(
                    f"{where}: sample shape {tuple(split.inputs.shape[1:])}, the model takes {self.model.input_shape}"
                )
            if split.inputs.dtype != torch.float32 or split.labels.dtype != torch.int64:
                raise LoopwrightError(f"{where}: want float32 inputs and int64 labels, got {split.inputs.dtype}, "
                                      f"{split.labels.dtype}")  # fmt: skip
            if not torch.isfinite(split.inputs).all():
                raise LoopwrightError(f"{where}: inputs hold NaN or infinity")
            if split.labels.min() < 0 or split.labels.max() >= self.classes:
                raise LoopwrightError(f"{where}: labels must lie in [0, {self.classes})")

    @property
    def shape_key(self) -> tuple[ModelSpec, tuple[int, ...]]:
        """Tasks with equal keys can share a ``Lanes``: same model, same split sizes."""
        return self.model, tuple(len(getattr(self, name)) for name in SPLITS)

    def with_calibration(self, calibration: Calibration | None) -> "Task":
        return replace(self, calibration=calibration)


class TaskFamily(ABC):
    """A distribution over tasks of one shape. Subclasses define the class attributes and ``draw``."""

    name: str
    kind: Kind
    source: str
    model: ModelSpec
    sizes: tuple[int, int, int]  # samples in train, control, target

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> tuple[npt.NDArray[Any], npt.NDArray[Any], int]:
        """Inputs ``[sum(sizes), *input_shape]`` (any scale), labels ``[sum(sizes)]`` and the number of classes."""

    def sample(self, rng: np.random.Generator, name: str | None = None) -> Task:
        """Draw a task: data, how hard it is, and the scale of its initial weights (10^U(-0.3, 0.3))."""
        inputs, labels, classes = self.draw(rng)
        x = torch.as_tensor(np.ascontiguousarray(inputs), dtype=torch.float32).reshape(-1, *self.model.input_shape)
        y = torch.as_tensor(np.ascontiguousarray(labels), dtype=torch.int64)
        ends = np.cumsum(self.sizes)
        if len(x) != ends[-1]:
            raise LoopwrightError(f"family {self.name} drew {len(x)} samples; its splits need {ends[-1]}")
        train, control, target = (
            Split(x[a:b].clone(), y[a:b].clone()) for a, b in zip((0, *ends[:-1]), ends, strict=True)
        )
        scale = float(10.0 ** rng.uniform(-0.3, 0.3))
        return Task(name or f"{self.name}:unnamed", self.model, train, control, target, classes, scale)

    def task(self, seed: int) -> Task:
        """The task named ``family:seed``, with its calibration where ``targets.json`` holds one."""
        if seed < 0:
            raise LoopwrightError(f"a task's seed must be 0 or more, got {seed}")
        from loopwright.inner_tasks.targets import calibration_of  # the targets are keyed by names defined here

        name = f"{self.name}:{seed}"
        rng = np.random.default_rng([zlib.crc32(self.name.encode()), seed])
        return self.sample(rng, name).with_calibration(calibration_of(name))


_FAMILIES: dict[str, TaskFamily] = {}


def register(family: TaskFamily) -> None:
    """Make a family known by its name. Raises ``LoopwrightError`` if the name is taken or holds a colon."""
    if ":" in family.name or family.name in _FAMILIES:
        raise LoopwrightError(f"family name {family.name!r} is taken or holds a ':'")
    _FAMILIES[family.name] = family


def families() -> dict[str, TaskFamily]:
    """Every registered family by name, in the order of registration."""
    from loopwright.inner_tasks import datasets, synthetic  # noqa: F401  (importing them registers their families)

    return dict(_FAMILIES)


@lru_cache(maxsize=1024)
def get_task(name: str) -> Task:
    """The task called ``family:seed``, for instance ``"digits-mlp:0"``; drawn once, then kept in memory."""
    family, _, seed = name.partition(":")
    known = families()
    if family not in known:
        raise UnknownNameError("task family", family, list(known))
    if not (seed.isascii() and seed.isdigit()):
        raise LoopwrightError(f"a task is named family:seed, for instance '{family}:0'; got {name!r}")
    return known[family].task(int(seed))


def get_tasks(names: Sequence[str]) -> list[Task]:
    return [get_task(name) for name in names]
