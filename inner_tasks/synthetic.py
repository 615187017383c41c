"""Generated problems on vectors: classification, regression and landscapes. Each draw varies their geometry widely.

What every family varies in the same way (label noise, conditioning, repeated samples, initial scale) is in
``task.Variation``; here is what is particular to each.
"""

import numpy as np

from loopwright.inner_tasks.family import AnyArray, TaskFamily
from loopwright.inner_tasks.losses import LossName
from loopwright.inner_tasks.models import MLP, ModelSpec, Rosenbrock
from loopwright.inner_tasks.registry import register_family

FEATURE_COUNT = 64
# Of a picture, where each split takes pieces from.
PLACES = ((0.0, 0.6), (0.6, 0.75), (0.75, 1.0))
VECTOR_MODELS = (
    MLP(FEATURE_COUNT, (32, 32), 10),
    MLP(FEATURE_COUNT, (64,), 10, "tanh"),
    MLP(FEATURE_COUNT, (24, 24, 24), 10, "gelu", norm=True),
)


def standardise(inputs: AnyArray) -> AnyArray:
    """The whole array with mean 0 and standard deviation 1: the ratios of features are left as they are."""
    return np.asarray((inputs - inputs.mean()) / inputs.std())


def standardise_columns(inputs: AnyArray) -> AnyArray:
    """Every column with mean 0 and standard deviation 1; one that is constant is 0."""
    return np.asarray((inputs - inputs.mean(axis=0)) / np.maximum(inputs.std(axis=0), 1e-6))


def draw_labels(rng: np.random.Generator, logits: AnyArray) -> AnyArray:
    """A class ``[samples]`` each, of the softmax of ``logits`` ``[samples, classes]``."""
    return np.asarray((logits + rng.gumbel(size=logits.shape)).argmax(axis=1))


def draw_errors(rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float, trained: int) -> AnyArray:
    """Which entries are gross errors: a share of 10^U(low, high) of those of the first ``trained`` samples.

    The others are what is judged by, and clean.
    """
    wrong: AnyArray = rng.random(shape) < 10.0 ** rng.uniform(low, high)
    wrong[trained:] = False
    return wrong


def draw_stretched(rng: np.random.Generator, samples: int, condition: float) -> tuple[AnyArray, AnyArray]:
    """Standard normal ``[samples, FEATURE_COUNT]``, and the same with a covariance of that condition, rotated."""
    latent = rng.normal(size=(samples, FEATURE_COUNT))
    spectrum = condition ** -np.linspace(0, 0.5, FEATURE_COUNT)
    rotation = np.linalg.qr(rng.normal(size=(FEATURE_COUNT, FEATURE_COUNT)))[0]
    return latent, standardise(latent * spectrum @ rotation)


class _Generated(TaskFamily):
    kind = "generated"
    models: tuple[ModelSpec, ...] = VECTOR_MODELS
    sizes = (1024, 256, 512)
    spreads = True

    @property
    def samples(self) -> int:
        return sum(self.sizes)


class Mixtures(_Generated):
    """Gaussian mixtures, one to four components a class, separation drawn log-uniformly."""

    name = "mixtures"
    source = "generated: Gaussian mixtures"

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        classes, components = int(rng.integers(2, 11)), int(rng.integers(1, 5))
        separation = 10.0 ** rng.uniform(-0.15, 0.5)
        rank = int(rng.integers(4, FEATURE_COUNT + 1))
        means = rng.normal(size=(classes * components, rank)) @ rng.normal(size=(rank, FEATURE_COUNT)) / rank
        means *= separation * np.sqrt(FEATURE_COUNT) / np.linalg.norm(means, axis=1, keepdims=True) / 2
        component = rng.integers(classes * components, size=self.samples)
        inputs = means[component] + rng.normal(size=(len(component), FEATURE_COUNT))
        return standardise(inputs), component % classes


class Teachers(_Generated):
    """Labels are the argmax of a random tanh network on inputs with a power-law spectrum."""

    name = "teachers"
    source = "generated: random teacher networks"

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        classes, width = int(rng.integers(2, 11)), int(rng.integers(4, 33))
        spectrum = np.arange(1, FEATURE_COUNT + 1) ** -rng.uniform(0.3, 1.5)
        rotation = np.linalg.qr(rng.normal(size=(FEATURE_COUNT, FEATURE_COUNT)))[0]
        latent = rng.normal(size=(self.samples, FEATURE_COUNT)) * spectrum / np.linalg.norm(spectrum)
        gain = 10.0 ** rng.uniform(-0.3, 0.5)
        hidden = np.tanh(gain * latent @ rng.normal(size=(FEATURE_COUNT, width)))
        logits = hidden @ rng.normal(size=(width, classes))
        logits -= logits.mean(axis=0)  # otherwise one class can win nearly everywhere
        return standardise(latent @ rotation), logits.argmax(axis=1)


class Wide(Teachers):
    """The same for a network of a hundred thousand parameters, wider than it would have to be."""

    name = "wide"
    models = (MLP(FEATURE_COUNT, (256, 256), 10),)


class Functions(_Generated):
    """Regression on sums of random waves, of low frequency or high, with noise."""

    name = "functions"
    source = "generated: sums of random waves"
    models = (MLP(16, (32, 32), 1), MLP(16, (48,), 1, "tanh"))
    loss: LossName = "squared-error"

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        relevant, waves = int(rng.integers(1, 9)), int(rng.integers(1, 17))
        inputs = rng.normal(size=(self.samples, 16))
        frequencies = 10.0 ** rng.uniform(-0.6, 0.3) * rng.normal(size=(relevant, waves)) / np.sqrt(relevant)
        phases = rng.uniform(0, 2 * np.pi, size=waves)
        exact = np.sin(inputs[:, :relevant] @ frequencies + phases) @ rng.normal(size=(waves, 1))
        return inputs, standardise(exact) + 10.0 ** rng.uniform(-2, -0.3) * rng.normal(size=exact.shape)


class Manifolds(_Generated):
    """Each class lives on its own curved low-dimensional sheet, with noise around it."""

    name = "manifolds"
    source = "generated: low-rank manifolds"

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        classes, rank = int(rng.integers(2, 11)), int(rng.integers(1, 9))
        labels = rng.integers(classes, size=self.samples)
        basis = rng.normal(size=(classes, rank, FEATURE_COUNT))
        offset = rng.normal(size=(classes, FEATURE_COUNT)) * rng.uniform(0, 0.6)
        latent = rng.normal(size=(len(labels), rank)) / np.sqrt(rank)
        sheet = np.sin(rng.uniform(0.5, 2.5) * np.einsum("nr,nrf->nf", latent, basis[labels]) + offset[labels])
        inputs = sheet + rng.uniform(0.1, 1.0) * rng.normal(size=sheet.shape)
        return standardise(inputs), labels


class Spirals(_Generated):
    """Two spirals wound into each other (Lang & Witbrock 1988): a plateau first, then it comes apart."""

    name = "spirals"
    source = "generated: two spirals in the plane"
    known = "1 without noise"
    models = (MLP(2, (32, 32), 2, "tanh"), MLP(2, (32, 32), 2))

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        labels = rng.integers(2, size=self.samples)
        radius = np.sqrt(rng.random(self.samples))
        angle = 2 * np.pi * rng.uniform(0.5, 1.25) * radius + np.pi * labels
        inputs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return standardise(inputs + rng.uniform(0, 0.08) * rng.normal(size=inputs.shape)), labels


class Parity(_Generated):
    """The parity of two or three among 10 to 32 bits: no linear signal, then a sudden drop (Barak et al. 2022)."""

    name = "parity"
    source = "generated: sparse parity"
    known = "1"
    models = (MLP(32, (64,), 16), MLP(32, (32, 32), 16))
    sizes = (2048, 256, 512)

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        length, relevant = int(rng.integers(10, 33)), int(rng.integers(2, 4))
        bits = np.where(np.arange(32) < length, rng.choice([-1.0, 1.0], size=(self.samples, 32)), 0.0)
        return bits, (bits[:, rng.permutation(length)[:relevant]].prod(axis=1) > 0).astype(np.int64)


class Modular(_Generated):
    """Addition modulo 3 to 13 of two noisy one-hot numbers: it memorises first (Power et al. 2022)."""

    name = "modular"
    source = "generated: modular addition"
    known = "1"
    models = Parity.models
    sizes = Parity.sizes

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        modulus = int(rng.integers(3, 14))
        numbers = rng.integers(modulus, size=(self.samples, 2))
        inputs = np.concatenate([np.eye(16)[numbers[:, 0]], np.eye(16)[numbers[:, 1]]], axis=1)
        return 2 * inputs + 0.2 * rng.normal(size=inputs.shape), numbers.sum(axis=1) % modulus


class Logistic(_Generated):
    """Softmax regression, convex, its inputs' covariance of condition 1 to 1e6: what preconditioning is for."""

    name = "logistic"
    source = "generated: ill-conditioned logistic regression"
    models = (MLP(FEATURE_COUNT, (), 10),)

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        latent, inputs = draw_stretched(rng, self.samples, 10.0 ** rng.uniform(0, 6))
        logits = latent @ rng.normal(size=(FEATURE_COUNT, int(rng.integers(2, 11)))) * rng.uniform(0.2, 1.0)
        return inputs, draw_labels(rng, logits)


class Quadratic(_Generated):
    """Least squares: a rotated quadratic whose Hessian has condition 1 to 1e6, with a floor of noise."""

    name = "quadratic"
    source = "generated: ill-conditioned least squares"
    known = "0.9 to 1, by the noise"
    models = (MLP(FEATURE_COUNT, (), 1),)
    loss: LossName = "squared-error"

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        latent, inputs = draw_stretched(rng, self.samples, 10.0 ** rng.uniform(0, 6))
        exact = latent @ rng.normal(size=(FEATURE_COUNT, 1)) / np.sqrt(FEATURE_COUNT)
        return inputs, exact + 10.0 ** rng.uniform(-2, -0.5) * rng.normal(size=exact.shape)


class Valleys(_Generated):
    """Rosenbrock's valley with noisy gradients; the least loss there is, is the variance of the labels."""

    name = "rosenbrock"
    source = "generated: Rosenbrock's valley"
    known = "0, the floor of the valley"
    models = (Rosenbrock(8),)
    loss: LossName = "squared-error"
    spreads = False
    initial_scales = (-1.0, 0.3)  # the valley's walls rise with the fourth power

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        factor = 1 + rng.uniform(0, 0.05) * rng.normal(size=(self.samples, 1))
        return factor, 10.0 ** rng.uniform(-1, 0) * rng.normal(size=(self.samples, 14))


for _family in (Mixtures(), Teachers(), Wide(), Functions(), Manifolds(), Spirals(), Parity(), Modular(), Logistic(),
                Quadratic(), Valleys()):  # fmt: skip
    register_family(_family)
