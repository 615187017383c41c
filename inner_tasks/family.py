"""TaskFamily: a distribution over tasks of a few shapes, and how its draws vary."""

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from loopwright.envs.loop.errors import LoopwrightError
from loopwright.inner_tasks.losses import LossName
from loopwright.inner_tasks.models import ModelSpec
from loopwright.inner_tasks.targets import find_calibration
from loopwright.inner_tasks.task import ShapeKey, Split, Task

AnyArray = npt.NDArray[Any]
Kind = Literal["image", "text", "tabular", "time series", "generated"]


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
        labels = _add_noise(rng, labels, variation.label_noise)
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
        name = name or f"{self.name}:unnamed"
        scale, repeats = variation.initial_scale, variation.repeats
        return Task(name, model, train, control, target, self.loss, scale, repeats=repeats)

    def vary(self, rng: np.random.Generator) -> Variation:
        """What ``sample`` draws first."""
        return Variation.draw(rng, len(self.models), self.initial_scales)

    def make_task(self, seed: int) -> Task:
        """The task named ``family:seed``, with its calibration where ``targets.json`` holds one."""
        name = f"{self.name}:{seed}"
        return self.sample(self.make_generator(seed), name).with_calibration(find_calibration(name))

    def make_plain(self, seed: int = 0, shape: int = 0) -> Task:
        """A draw without any variation but in the data, named ``family-plain:seed``, to compare with other work."""
        return self.sample(self.make_generator(seed), f"{self.name}-plain:{seed}", Variation(shape))

    def draw_shape(self, seed: int) -> ShapeKey:
        """That of ``make_task(seed)``, without drawing its data."""
        return self.models[self.vary(self.make_generator(seed)).shape], self.loss, self.sizes

    def make_generator(self, seed: int) -> np.random.Generator:
        """The random numbers of draw number ``seed``. Raises ``LoopwrightError`` for a seed below 0."""
        if seed < 0:
            raise LoopwrightError(f"a task's seed must be 0 or more, got {seed}")
        return np.random.default_rng([zlib.crc32(self.name.encode()), seed])


def _add_noise(rng: np.random.Generator, labels: npt.NDArray[Any], noise: float) -> npt.NDArray[Any]:
    if noise == 0:
        return labels
    if np.issubdtype(labels.dtype, np.floating):
        return np.asarray(labels + noise * labels.std() * rng.normal(size=labels.shape))
    replaced = rng.random(labels.shape) < noise
    return np.asarray(np.where(replaced, rng.integers(labels.max() + 1, size=labels.shape), labels))
