"""Generated problems that are as uncertain as real data are: what is to be predicted is drawn from probabilities.

Their best loss is far from 0, most of it is reached early, and who trains on overfits.
"""

import numpy as np

from loopwright.inner_tasks.family import AnyArray, TaskFamily
from loopwright.inner_tasks.losses import LossName
from loopwright.inner_tasks.models import MLP, ConvNet, ModelSpec
from loopwright.inner_tasks.registry import register_family
from loopwright.inner_tasks.synthetic import (
    FEATURE_COUNT,
    PLACES,
    VECTOR_MODELS,
    draw_labels,
    standardise,
    standardise_columns,
)

COLUMNS = 12  # of a table
SIDE = 8  # pixels along the side of a texture
GLYPH = 12  # pixels along the side of a glyph


def draw_table(rng: np.random.Generator, samples: int) -> AnyArray:
    """Columns ``[samples, COLUMNS]`` that hang together: some round, some long-tailed, some of few values."""
    factors = rng.normal(size=(samples, 4)) @ rng.normal(size=(4, COLUMNS)) / 2
    table = factors * rng.uniform(0, 1) + rng.normal(size=(samples, COLUMNS))
    kind = rng.integers(4, size=COLUMNS)
    table[:, kind == 1] = np.exp(table[:, kind == 1])
    table[:, kind == 2] = np.sign(np.round(table[:, kind == 2]))
    table[:, kind == 3] = table[:, kind == 3] > rng.uniform(-1, 1)
    return standardise_columns(table)


def grow_forest(rng: np.random.Generator, table: AnyArray, outputs: int) -> AnyArray:
    """The sum ``[samples, outputs]`` of random trees, each a box of up to three columns, standardised."""
    score = np.zeros((len(table), outputs))
    for _ in range(int(rng.integers(3, 25))):
        inside = np.ones(len(table), dtype=bool)
        for column in rng.integers(COLUMNS, size=rng.integers(1, 4)):
            side = rng.choice([-1, 1])
            inside &= side * table[:, column] > side * np.quantile(table[:, column], rng.uniform(0.2, 0.8))
        score += np.where(inside[:, None], rng.normal(size=outputs), 0.0)
    return standardise(score + 1e-6 * rng.normal(size=score.shape))


class Forests(TaskFamily):
    """Tables of mixed columns, their classes drawn by the scores of random trees."""

    name = "forests"
    kind = "generated"
    source = "generated: classes by random trees on mixed columns"
    models: tuple[ModelSpec, ...] = (MLP(COLUMNS, (32, 32), 6), MLP(COLUMNS, (48,), 6, "gelu"))
    sizes = (1024, 192, 384)
    spreads = True

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        table = draw_table(rng, sum(self.sizes))
        score = grow_forest(rng, table, int(rng.integers(2, 7)))
        return table, draw_labels(rng, 10.0 ** rng.uniform(0, 0.8) * score)


class Appraisals(TaskFamily):
    """A number by the same trees and a slope, whose noise grows where it is high."""

    name = "appraisals"
    kind = "generated"
    source = "generated: numbers by random trees on mixed columns"
    models: tuple[ModelSpec, ...] = (MLP(COLUMNS, (32, 32), 1, "gelu"), MLP(COLUMNS, (64,), 1))
    sizes = Forests.sizes
    loss: LossName = "squared-error"
    spreads = True

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        table = draw_table(rng, sum(self.sizes))
        exact = grow_forest(rng, table, 1) + rng.uniform(0, 1) * table[:, :4] @ rng.normal(size=(4, 1))
        noise = 10.0 ** rng.uniform(-1, 0.2) * np.exp(rng.uniform(0, 0.6) * standardise(exact))
        return table, standardise(exact + noise * rng.normal(size=exact.shape))


class Topics(TaskFamily):
    """Counts of words by topics (after latent Dirichlet allocation, Blei et al. 2003); the class is most likely one."""

    name = "topics"
    kind = "generated"
    source = "generated: bags of words by topics"
    models = VECTOR_MODELS
    sizes = (1024, 256, 512)

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        topics, classes, length = int(rng.integers(2, 13)), int(rng.integers(2, 9)), int(rng.integers(16, 129))
        words = rng.dirichlet(np.full(FEATURE_COUNT, 10.0 ** rng.uniform(-1.5, 0)), size=topics)
        shares = rng.dirichlet(np.full(topics, 10.0 ** rng.uniform(-1, 0.3)), size=sum(self.sizes))
        counts = rng.multinomial(length, shares @ words)
        logits = shares @ rng.normal(size=(topics, classes)) * 10.0 ** rng.uniform(0.4, 1.3)
        return standardise(np.log1p(counts)), draw_labels(rng, logits)


class Clouds(TaskFamily):
    """Two classes in the plane, each a few clouds that overlap."""

    name = "clouds"
    kind = "generated"
    source = "generated: overlapping clouds in the plane"
    models: tuple[ModelSpec, ...] = (MLP(2, (32, 32), 3, "gelu"), MLP(2, (48,), 3))
    sizes = (1024, 256, 512)

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        classes, clouds = int(rng.integers(2, 4)), int(rng.integers(1, 5))
        cloud = rng.integers(classes * clouds, size=sum(self.sizes))
        middle = rng.normal(size=(classes * clouds, 2))
        shape = 10.0 ** rng.uniform(-0.8, 0) * rng.normal(size=(classes * clouds, 2, 2))
        inputs = middle[cloud] + np.einsum("nij,nj->ni", shape[cloud], rng.normal(size=(len(cloud), 2)))
        return standardise(inputs), cloud % classes


class Textures(TaskFamily):
    """Pieces of random fields, a field and a spectrum to a class; each split has its own part of the fields."""

    name = "textures"
    kind = "generated"
    source = "generated: pieces of random fields"
    models = VECTOR_MODELS
    sizes = (1024, 256, 512)

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        classes, side = int(rng.integers(2, 7)), 96
        rows, columns = np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij")
        fields = []
        for _ in range(classes):
            turn, stretch = rng.uniform(0, np.pi), 10.0 ** rng.uniform(0, 0.7)
            along = (rows * np.cos(turn) + columns * np.sin(turn)) * stretch
            across = columns * np.cos(turn) - rows * np.sin(turn)
            power = (0.02 + np.hypot(along, across)) ** -rng.uniform(0.5, 2.5)
            field = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(side, side))) * power, s=(side, side))
            fields.append(standardise(field) + rng.normal(0, 0.7))
        labels = rng.integers(classes, size=sum(self.sizes))
        begins, ends = (np.repeat(PLACES, self.sizes, axis=0) * side).astype(np.int64).T
        row, column = rng.integers(begins, ends - SIDE + 1), rng.integers(side - SIDE + 1, size=len(labels))
        windows = np.lib.stride_tricks.sliding_window_view(np.stack(fields), (SIDE, SIDE), axis=(1, 2))
        pieces = windows[labels, row, column].reshape(len(labels), -1)
        return standardise(pieces + rng.uniform(0, 0.3) * rng.normal(size=pieces.shape)), labels


class Glyphs(TaskFamily):
    """Small pictures of strokes that differ from hand to hand: moved, bent, thick or thin, faint."""

    name = "glyphs"
    kind = "generated"
    source = "generated: glyphs of a few strokes"
    models: tuple[ModelSpec, ...] = (MLP(GLYPH * GLYPH, (40,), 8, "gelu"), MLP(GLYPH * GLYPH, (24, 24), 8))
    sizes = (2048, 256, 512)

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        classes, points, samples = int(rng.integers(3, 9)), int(rng.integers(3, 6)), sum(self.sizes)
        labels = rng.integers(classes, size=samples)
        knots = rng.uniform(2.5, GLYPH - 3.5, size=(classes, points, 2))
        knots = knots[labels] + rng.uniform(0.2, 1.2) * rng.normal(size=(samples, points, 2))
        knots += rng.uniform(0, 1.0) * rng.normal(size=(samples, 1, 2))
        share = np.linspace(0, 1, 6)[:, None]
        strokes = knots[:, :-1, None] * (1 - share) + knots[:, 1:, None] * share
        at = strokes.reshape(samples, -1, 2)
        grid = np.arange(GLYPH)
        width = rng.uniform(0.5, 1.2, size=(samples, 1, 1))
        across, down = (np.exp(-(((grid - at[..., axis, None]) / width) ** 2)) for axis in (0, 1))
        pictures = np.einsum("npx,npy->nxy", across, down).clip(max=1.5) * rng.uniform(0.6, 1.2, size=(samples, 1, 1))
        pictures += rng.uniform(0, 0.5) * rng.normal(size=pictures.shape)
        return standardise(pictures.reshape(samples, -1)), labels


class PicturedGlyphs(Glyphs):
    """The same for a convolution."""

    name = "glyphs-conv"
    models = (ConvNet(GLYPH, (8, 12), 8),)


for _family in (Forests(), Appraisals(), Topics(), Clouds(), Textures(), Glyphs(), PicturedGlyphs()):
    register_family(_family)
