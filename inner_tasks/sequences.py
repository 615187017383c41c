"""Generated sequences: signals for a convolution, symbols to remember, text of a grammar whose entropy is known."""

import numpy as np

from loopwright.inner_tasks.family import AnyArray, TaskFamily
from loopwright.inner_tasks.models import ConvNet, ModelSpec, RecurrentNet, Transformer
from loopwright.inner_tasks.registry import register_family
from loopwright.inner_tasks.synthetic import standardise

LENGTH = 64  # of a signal
STEPS = 16  # of a sequence of symbols


class Signals(TaskFamily):
    """Ten templates, each somewhere in a signal, scaled, sheared and in noise; after MNIST-1D (Greydanus 2020)."""

    name = "signals"
    kind = "generated"
    source = "generated: shifted templates in correlated noise"
    models = (ConvNet(LENGTH, (8, 16), 10, dimensions=1),)
    sizes = (2048, 256, 256)

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        samples, width = sum(self.sizes), 24
        knots = rng.normal(size=(10, 8))
        at = np.linspace(0, 7, width)
        templates = np.stack([np.interp(at, np.arange(8), own) for own in knots])
        labels = rng.integers(10, size=samples)
        shift = rng.integers(LENGTH - width + 1, size=samples)
        signal = rng.normal(size=(samples, LENGTH + 8))
        signal = np.stack([signal[:, lag : lag + LENGTH] for lag in range(9)]).mean(axis=0)  # correlated
        signal = rng.uniform(0.3, 1.5) * signal + 0.1 * rng.normal(size=signal.shape)
        signal += rng.normal(size=(samples, 1)) * np.linspace(-0.5, 0.5, LENGTH) * rng.uniform(0, 1.5)
        where = shift[:, None] + np.arange(width)
        signal[np.arange(samples)[:, None], where] += rng.uniform(0.7, 1.3, size=(samples, 1)) * templates[labels]
        return standardise(signal), labels


class Recall(TaskFamily):
    """Which of eight symbols stood some steps ago, distractors since: long credit assignment, exploding gradients."""

    name = "recall"
    kind = "generated"
    source = "generated: recall of an early symbol"
    known = "1"
    models = (RecurrentNet(STEPS, 16, 32, 1, 8, cell="tanh", tokens=True),)
    sizes = (2048, 256, 256)

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        samples, lag = sum(self.sizes), int(rng.integers(3, STEPS))
        tokens = rng.integers(8, 16, size=(samples, STEPS))
        labels = rng.integers(8, size=samples)
        tokens[:, STEPS - 1 - lag] = labels
        return tokens, labels


class Grammar(TaskFamily):
    """A language model of a random grammar: the next symbol depends on the last two. Its entropy is known."""

    name = "grammar"
    kind = "generated"
    source = "generated: second-order Markov chains"
    models: tuple[ModelSpec, ...] = (RecurrentNet(STEPS, 16, 32, 1, 16, every_step=True, tokens=True),)
    sizes = (2048, 128, 256)

    @property
    def known(self) -> str:  # type: ignore[override]  # computed when it is asked for, which is rarely
        return f"loss {np.mean([self.entropy(seed) for seed in range(3)]):.2f}, the entropy, but for first symbols"

    def _rules(self, rng: np.random.Generator) -> AnyArray:
        """Probabilities ``[symbols, symbols, symbols]`` of the next symbol given the last two."""
        symbols = int(rng.integers(4, 17))
        return rng.dirichlet(np.full(symbols, 10.0 ** rng.uniform(-1, -0.3)), size=(symbols, symbols))

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        cumulative = self._rules(rng).cumsum(axis=-1)
        samples, symbols = sum(self.sizes), len(cumulative)
        burn_in = 20  # until the chain has forgotten how it began
        text = rng.integers(symbols, size=(samples, burn_in + STEPS + 1))
        for step in range(2, text.shape[1]):
            rule = cumulative[text[:, step - 2], text[:, step - 1]]
            text[:, step] = (rng.random((samples, 1)) > rule).sum(axis=1).clip(max=symbols - 1)
        return text[:, burn_in:-1], text[:, burn_in + 1 :]

    def entropy(self, seed: int) -> float:
        """Of the next symbol given the last two, in nats: no model's loss on draw ``plain(seed)`` is lower for long."""
        rules = self._rules(self.make_generator(seed))
        pairs = np.full(rules.shape[:2], 1 / rules[..., 0].size)
        for _ in range(300):
            pairs = np.einsum("ab,abc->bc", pairs, rules)
        surprise = -(rules * np.log(np.maximum(rules, 1e-300))).sum(axis=-1)
        return float((pairs * surprise).sum())


class Attention(Grammar):
    """The same texts for a transformer."""

    name = "grammar-transformer"
    models = (Transformer(STEPS, 16, 32, 2, 1, 16, every_step=True, tokens=True),)


for _family in (Signals(), Recall(), Grammar(), Attention()):
    register_family(_family)
