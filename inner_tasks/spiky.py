"""Generated problems whose gradients spike: gross errors in the training data, and long memory.

What clipping is for: a single microbatch that would undo a hundred others.
"""

import numpy as np

from loopwright.inner_tasks.family import AnyArray, TaskFamily
from loopwright.inner_tasks.losses import LossName
from loopwright.inner_tasks.models import MLP, ModelSpec, RecurrentNet
from loopwright.inner_tasks.registry import register_family
from loopwright.inner_tasks.sequences import STEPS
from loopwright.inner_tasks.synthetic import FEATURE_COUNT, VECTOR_MODELS, Functions, Teachers, draw_errors, standardise


class Outliers(Functions):
    """Regression where a few training labels are gross errors, up to fifty times as far off as any true value."""

    name = "outliers"
    source = "generated: sums of random waves, with gross errors among the training labels"

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        inputs, labels = super().draw(rng)
        wrong = draw_errors(rng, labels.shape, -2.5, -1.3, self.sizes[0])
        errors = 10.0 ** rng.uniform(0.7, 1.7) * rng.normal(size=labels.shape)
        return inputs, np.where(wrong, errors, labels)


class Glitches(Teachers):
    """Classes by a teacher, from inputs of which a few numbers in the training data are far too large."""

    name = "glitches"
    source = "generated: random teacher networks, with gross errors among the training inputs"
    models = (VECTOR_MODELS[0], MLP(FEATURE_COUNT, (64,), 10, "gelu"))

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        inputs, labels = super().draw(rng)
        wrong = draw_errors(rng, inputs.shape, -4.7, -3.7, self.sizes[0])
        return np.where(wrong, 10.0 ** rng.uniform(1.5, 2.5) * np.sign(inputs), inputs), labels


class Adding(TaskFamily):
    """The sum of two marked numbers of a sequence (Hochreiter & Schmidhuber 1997), by a recurrent net of tanh units."""

    name = "adding"
    kind = "generated"
    source = "generated: the sum of two marked numbers in a sequence"
    known = "1 without noise"
    models: tuple[ModelSpec, ...] = (RecurrentNet(STEPS, 2, 32, 1, 1, cell="tanh"),)
    sizes = (2048, 256, 256)
    loss: LossName = "squared-error"

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        samples, length = sum(self.sizes), int(rng.integers(4, STEPS + 1))  # the marks lie among the last ones
        numbers, marks = rng.uniform(-1, 1, size=(samples, STEPS)), np.zeros((samples, STEPS))
        places = STEPS - 1 - rng.random((samples, length)).argsort(axis=1)[:, :2]
        np.put_along_axis(marks, places, 1.0, axis=1)
        total = (numbers * marks).sum(axis=1, keepdims=True)
        return np.stack([numbers, 2 * marks], axis=2), standardise(total)


for _family in (Outliers(), Glitches(), Adding()):
    register_family(_family)
