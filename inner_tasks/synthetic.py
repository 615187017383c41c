"""Generated classification families. Each draw varies class count, geometry, noise and feature scaling widely.

All three share one shape (64 features, up to 10 classes, the same MLP), so they train side by side in one batch.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from loopwright.inner_tasks.models import MLP
from loopwright.inner_tasks.task import TaskFamily, register

FEATURES = 64
Array = npt.NDArray[Any]


def flip_labels(rng: np.random.Generator, labels: Array, classes: int, fraction: float) -> Array:
    """Replace a random ``fraction`` of the labels by uniformly drawn ones."""
    flipped = rng.random(len(labels)) < fraction
    return np.asarray(np.where(flipped, rng.integers(classes, size=len(labels)), labels))


def rescale(rng: np.random.Generator, inputs: Array, spread: float) -> Array:
    """Standardise the whole array, then scale each feature by 10^N(0, spread): the conditioning of the problem."""
    standard = (inputs - inputs.mean()) / inputs.std()
    return np.asarray(standard * 10.0 ** rng.normal(0, spread, size=inputs.shape[1]))


class _Generated(TaskFamily):
    kind = "generated"
    model = MLP(FEATURES, (32, 32), 10)
    sizes = (1024, 256, 512)

    def finish(self, rng: np.random.Generator, inputs: Array, labels: Array, classes: int) -> tuple[Array, Array, int]:
        noise = rng.choice([0.0, rng.uniform(0, 0.3)])
        return rescale(rng, inputs, rng.uniform(0, 0.4)), flip_labels(rng, labels, classes, noise), classes


class Mixtures(_Generated):
    """Gaussian mixtures, one to four components a class, separation drawn log-uniformly."""

    name = "mixtures"
    source = "generated: Gaussian mixtures with label noise"

    def draw(self, rng: np.random.Generator) -> tuple[Array, Array, int]:
        classes, components = int(rng.integers(2, 11)), int(rng.integers(1, 5))
        separation = 10.0 ** rng.uniform(-0.15, 0.5)
        rank = int(rng.integers(4, FEATURES + 1))
        means = rng.normal(size=(classes * components, rank)) @ rng.normal(size=(rank, FEATURES)) / rank
        means *= separation * np.sqrt(FEATURES) / np.linalg.norm(means, axis=1, keepdims=True) / 2
        component = rng.integers(classes * components, size=sum(self.sizes))
        inputs = means[component] + rng.normal(size=(len(component), FEATURES))
        return self.finish(rng, inputs, component % classes, classes)


class Teachers(_Generated):
    """Labels are the argmax of a random tanh network on inputs with a power-law spectrum."""

    name = "teachers"
    source = "generated: random teacher networks"

    def draw(self, rng: np.random.Generator) -> tuple[Array, Array, int]:
        classes, width = int(rng.integers(2, 11)), int(rng.integers(4, 33))
        spectrum = np.arange(1, FEATURES + 1) ** -rng.uniform(0.3, 1.5)
        rotation = np.linalg.qr(rng.normal(size=(FEATURES, FEATURES)))[0]
        latent = rng.normal(size=(sum(self.sizes), FEATURES)) * spectrum / np.linalg.norm(spectrum)
        gain = 10.0 ** rng.uniform(-0.3, 0.5)
        hidden = np.tanh(gain * latent @ rng.normal(size=(FEATURES, width)))
        logits = hidden @ rng.normal(size=(width, classes))
        logits -= logits.mean(axis=0)  # otherwise one class can win nearly everywhere
        return self.finish(rng, latent @ rotation, logits.argmax(axis=1), classes)


class Manifolds(_Generated):
    """Each class lives on its own curved low-dimensional sheet, with noise around it."""

    name = "manifolds"
    source = "generated: low-rank manifolds"

    def draw(self, rng: np.random.Generator) -> tuple[Array, Array, int]:
        classes, rank = int(rng.integers(2, 11)), int(rng.integers(1, 9))
        labels = rng.integers(classes, size=sum(self.sizes))
        basis = rng.normal(size=(classes, rank, FEATURES))
        offset = rng.normal(size=(classes, FEATURES)) * rng.uniform(0, 0.6)
        latent = rng.normal(size=(len(labels), rank)) / np.sqrt(rank)
        sheet = np.sin(rng.uniform(0.5, 2.5) * np.einsum("nr,nrf->nf", latent, basis[labels]) + offset[labels])
        inputs = sheet + rng.uniform(0.1, 1.0) * rng.normal(size=sheet.shape)
        return self.finish(rng, inputs, labels, classes)


for _family in (Mixtures(), Teachers(), Manifolds()):
    register(_family)
