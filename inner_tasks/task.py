"""Task, TaskFamily and the registry: what a training run trains, and where new ones come from.

A task has three splits. ``train`` gives gradients; ``control`` may be looked at by a controller, at a charge;
``target`` belongs to the harness alone: it decides whether the target was hit, and no observation depends on it.
"""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from loopwright.inner_tasks.errors import LoopwrightError, UnknownNameError
from loopwright.inner_tasks.losses import METRICS, LossName
from loopwright.inner_tasks.models import ModelSpec, output_shape

ShapeKey = tuple[ModelSpec, LossName, tuple[int, ...]]
SPLITS: tuple[Literal["train", "control", "target"], ...] = ("train", "control", "target")
Kind = Literal["image", "text", "tabular", "time series", "generated"]


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs ``[N, *input_shape]``, float32 or int64 tokens, and labels ``[N, ...]``: int64 classes, or float32."""

    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Calibration:
    """A task's target, and how fast its best static configuration gets there (see ``envs.calibration``).

    ``curve`` holds (geq, loss) pairs, geq rising and loss falling strictly: the median over re-runs of the running
    minimum of the target-split loss, ending at (``cost``, ``target``). It defines E(L) in the reward. ``winner`` is the
    best configuration, as ``envs.calibration.StaticConfiguration`` writes itself, and ``easier`` a second target, what
    the median configuration ends with; None where they were not kept.
    """

    target: float
    cost: float
    curve: tuple[tuple[float, float], ...]
    winner: Mapping[str, Any] | None = field(default=None, hash=False)
    easier: float | None = None

    def __post_init__(self) -> None:
        geq, loss = zip(*self.curve, strict=True) if self.curve else ((), ())
        if len(geq) < 2 or np.any(np.diff(geq) <= 0) or np.any(np.diff(loss) >= 0):
            raise LoopwrightError(f"a calibration curve needs 2 or more points, geq rising, loss falling: {self.curve}")
        if self.curve[-1] != (self.cost, self.target):
            raise LoopwrightError(f"a calibration curve must end at {(self.cost, self.target)}, not {self.curve[-1]}")


@dataclass(frozen=True, eq=False)
class Task:
    """One inner training problem: data in three splits, a model, a loss, the scale of its initial weights, a target.

    ``name`` is ``family:seed``. The loss also says which metric there is (``inner_tasks.losses``). Raises
    ``LoopwrightError`` where the parts do not fit each other.
    """

    name: str
    model: ModelSpec
    train: Split
    control: Split
    target: Split
    loss: LossName = "cross-entropy"
    initial_scale: float = 1.0
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
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
        outputs = output_shape(self.model)
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
    def shape_key(self) -> "ShapeKey":
        """Tasks with equal keys can share a ``Lanes``: same model, same loss, same split sizes."""
        return self.model, self.loss, tuple(len(getattr(self, name)) for name in SPLITS)

    def with_calibration(self, calibration: Calibration | None) -> "Task":
        return replace(self, calibration=calibration)


@dataclass(frozen=True)
class Variation:
    """How a draw differs from its family's plain problem, which is the one with the defaults.

    Attributes:
        shape: which of the family's models.
        initial_scale: what the initial weights are multiplied by.
        label_noise: share of the labels, in all splits, replaced by random ones; of numbers, the standard deviation of
            the noise, in those of the labels.
        repeats: the training split holds every sample so many times, and so many times fewer different ones.
        feature_scale: what all inputs are multiplied by.
        feature_spread: every feature is multiplied by 10^N(0, spread) as well: the conditioning of the problem.
    """

    shape: int = 0
    initial_scale: float = 1.0
    label_noise: float = 0.0
    repeats: int = 1
    feature_scale: float = 1.0
    feature_spread: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator, shapes: int, initial_scales: tuple[float, float]) -> "Variation":
        """Any of ``shapes`` models; everything else differs from the plain problem in half of the draws."""
        shape = int(rng.integers(shapes))
        differs = rng.random(5) < 0.5
        drawn: dict[str, Any] = {
            "initial_scale": float(10.0 ** rng.uniform(*initial_scales)),
            "label_noise": float(rng.uniform(0, 0.3)),
            "repeats": int(rng.choice([2, 4])),
            "feature_scale": float(10.0 ** rng.uniform(-0.5, 0.5)),
            "feature_spread": float(rng.uniform(0, 0.4)),
        }
        return cls(shape, **{name: value for (name, value), own in zip(drawn.items(), differs, strict=True) if own})


class TaskFamily(ABC):
    """A distribution over tasks. Subclasses define the class attributes and ``draw``.

    Attributes:
        name: without a colon.
        kind: of data.
        source: where the data comes from, in words.
        models: what a draw chooses between; tasks with the same model run side by side.
        sizes: samples in train, control and target.
        loss: see ``inner_tasks.losses``.
        requires: name of the data source (``inner_tasks.datasets``) it needs, or None for generated data.
        spreads: whether its features mean something one by one, so that a draw may stretch each by its own factor.
        known: what score is known to be reachable, or unbeatable, in words.
        initial_scales: logarithms (base 10) between which a draw scales the initial weights.
    """

    name: str
    kind: Kind
    source: str
    models: tuple[ModelSpec, ...]
    sizes: tuple[int, int, int]
    loss: LossName = "cross-entropy"
    requires: str | None = None
    spreads: bool = False
    known: str = ""
    initial_scales: tuple[float, float] = (-1.0, 1.0)

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Inputs ``[sum(sizes), *input_shape]``, standardised unless they are tokens, and labels ``[sum(sizes), ...]``.

        In the order train, control, target, which matters where neighbours must not be torn apart.
        """

    def sample(self, rng: np.random.Generator, name: str | None = None, variation: Variation | None = None) -> Task:
        """Draw a task: its variation, unless one is given, and its data."""
        variation = variation or self.vary(rng)
        model = self.models[variation.shape]
        inputs, labels = self.draw(rng)
        if len(inputs) != sum(self.sizes):
            raise LoopwrightError(f"family {self.name} drew {len(inputs)} samples; its splits need {sum(self.sizes)}")
        labels = _with_noise(rng, labels, variation.label_noise)
        if model.vocabulary is None:
            inputs = inputs * variation.feature_scale
            if self.spreads:
                inputs = inputs * 10.0 ** rng.normal(0, variation.feature_spread, size=inputs.shape[1:])
        x = torch.as_tensor(np.ascontiguousarray(inputs)).to(model.input_dtype).reshape(-1, *model.input_shape)
        kind_of_label = torch.int64 if self.loss == "cross-entropy" else torch.float32
        y = torch.as_tensor(np.ascontiguousarray(labels)).to(kind_of_label)
        ends = np.cumsum(self.sizes)
        train, control, target = (
            Split(x[a:b].clone(), y[a:b].clone()) for a, b in zip((0, *ends[:-1]), ends, strict=True)
        )
        row = torch.arange(len(train)) % (len(train) // variation.repeats)
        train = Split(train.inputs[row], train.labels[row])
        return Task(name or f"{self.name}:unnamed", model, train, control, target, self.loss, variation.initial_scale)

    def vary(self, rng: np.random.Generator) -> Variation:
        """What ``sample`` draws first."""
        return Variation.draw(rng, len(self.models), self.initial_scales)

    def task(self, seed: int) -> Task:
        """The task named ``family:seed``, with its calibration where ``targets.json`` holds one."""
        from loopwright.inner_tasks.targets import calibration_of  # the targets are keyed by names defined here

        name = f"{self.name}:{seed}"
        return self.sample(self.generator(seed), name).with_calibration(calibration_of(name))

    def plain(self, seed: int = 0, shape: int = 0) -> Task:
        """A draw without any variation but in the data, named ``family-plain:seed``, to compare with other work."""
        return self.sample(self.generator(seed), f"{self.name}-plain:{seed}", Variation(shape))

    def shape_key(self, seed: int) -> ShapeKey:
        """That of ``task(seed)``, without drawing its data."""
        return self.models[self.vary(self.generator(seed)).shape], self.loss, self.sizes

    def generator(self, seed: int) -> np.random.Generator:
        """The random numbers of draw number ``seed``. Raises ``LoopwrightError`` for a seed below 0."""
        if seed < 0:
            raise LoopwrightError(f"a task's seed must be 0 or more, got {seed}")
        return np.random.default_rng([zlib.crc32(self.name.encode()), seed])


def _with_noise(rng: np.random.Generator, labels: npt.NDArray[Any], noise: float) -> npt.NDArray[Any]:
    if noise == 0:
        return labels
    if np.issubdtype(labels.dtype, np.floating):
        return np.asarray(labels + noise * labels.std() * rng.normal(size=labels.shape))
    replaced = rng.random(labels.shape) < noise
    return np.asarray(np.where(replaced, rng.integers(labels.max() + 1, size=labels.shape), labels))


_FAMILIES: dict[str, TaskFamily] = {}


def register(family: TaskFamily) -> None:
    """Make a family known by its name. Raises ``LoopwrightError`` if the name is taken or holds a colon."""
    if ":" in family.name or family.name in _FAMILIES:
        raise LoopwrightError(f"family name {family.name!r} is taken or holds a ':'")
    _FAMILIES[family.name] = family


def families() -> dict[str, TaskFamily]:
    """Every registered family by name, in the order of registration."""
    from loopwright.inner_tasks import real, sequences, synthetic  # noqa: F401  (importing registers their families)

    return dict(_FAMILIES)


def find_family(name: str) -> tuple[TaskFamily, int]:
    """The family and the seed of the task called ``family:seed``, for instance ``"digits-mlp:0"``."""
    family, _, seed = name.partition(":")
    known = families()
    if family not in known:
        raise UnknownNameError("task family", family, list(known))
    if not (seed.isascii() and seed.isdigit()):
        raise LoopwrightError(f"a task is named family:seed, for instance '{family}:0'; got {name!r}")
    return known[family], int(seed)


def shape_of(task: str | Task) -> ShapeKey:
    """The shape of a task, or of the one of that name, without drawing its data."""
    if isinstance(task, Task):
        return task.shape_key
    family, seed = find_family(task)
    return family.shape_key(seed)


@lru_cache(maxsize=1024)
def get_task(name: str) -> Task:
    """The task called ``family:seed``; drawn once, then kept in memory."""
    family, seed = find_family(name)
    return family.task(seed)


def get_tasks(names: Sequence[str]) -> list[Task]:
    return [get_task(name) for name in names]
