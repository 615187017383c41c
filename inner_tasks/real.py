"""Families on real data (``datasets.py``). Every draw takes new random splits of the data, besides its variation."""

from collections.abc import Callable

import numpy as np

from loopwright.inner_tasks.datasets import (
    PICTURES,
    SOURCES,
    SPEECH_SYMBOLS,
    VOWEL_STEPS,
    WORD_LENGTH,
    WORD_SYMBOLS,
    Arrays,
    load,
)
from loopwright.inner_tasks.family import AnyArray, Kind, TaskFamily
from loopwright.inner_tasks.losses import LossName
from loopwright.inner_tasks.models import MLP, ConvNet, ModelSpec, RecurrentNet, Transformer
from loopwright.inner_tasks.registry import register_family
from loopwright.inner_tasks.synthetic import PLACES, VECTOR_MODELS, draw_errors, standardise, standardise_columns

Draw = Callable[[np.random.Generator, Arrays, tuple[int, int, int]], tuple[AnyArray, AnyArray]]
SIGNAL = 128  # samples of a time series, after resampling
LETTERS = 24  # letters of a speech that a language model sees
PATCH = 16  # pixels along the side of a piece of a picture


class RealFamily(TaskFamily):
    """A family on one data source; ``draw`` of the others is a function ``(rng, arrays, sizes)``."""

    def __init__(
        self,
        name: str,
        kind: Kind,
        requires: str,
        models: tuple[ModelSpec, ...],
        sizes: tuple[int, int, int],
        prepare: Draw,
        known: str,
        loss: LossName = "cross-entropy",
    ) -> None:
        self.name, self.kind, self.requires, self.models, self.sizes = name, kind, requires, models, sizes
        self.prepare, self.known, self.loss = prepare, known, loss
        self.source = f"{SOURCES[requires].package}: {SOURCES[requires].about}"
        self.spreads = kind == "tabular"

    def draw(self, rng: np.random.Generator) -> tuple[AnyArray, AnyArray]:
        assert self.requires is not None
        return self.prepare(rng, load(self.requires), self.sizes)


def draw_columns(rng: np.random.Generator, arrays: Arrays, sizes: tuple[int, int, int]) -> tuple[AnyArray, AnyArray]:
    """A table: every column standardised, and so is what is to be predicted where it is a number."""
    chosen = rng.permutation(len(arrays["inputs"]))[: sum(sizes)]
    inputs, labels = standardise_columns(arrays["inputs"][chosen].astype(np.float64)), arrays["labels"][chosen]
    return inputs, labels if labels.dtype == np.uint8 else standardise(labels)[:, None]


def draw_images(rng: np.random.Generator, arrays: Arrays, sizes: tuple[int, int, int]) -> tuple[AnyArray, AnyArray]:
    """Images standardised as a whole; 28x28 pixels averaged to 14x14."""
    chosen = rng.permutation(len(arrays["inputs"]))[: sum(sizes)]
    inputs = arrays["inputs"][chosen].astype(np.float64)
    if inputs.shape[1] == 28 * 28:
        inputs = inputs.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4))
    return standardise(inputs), arrays["labels"][chosen]


def draw_some_classes(
    rng: np.random.Generator, arrays: Arrays, sizes: tuple[int, int, int]
) -> tuple[AnyArray, AnyArray]:
    """Images of half of the classes, chosen anew for every draw."""
    classes = rng.permutation(int(arrays["labels"].max()) + 1)
    classes = classes[: len(classes) // 2]
    chosen = np.flatnonzero(np.isin(arrays["labels"], classes))
    some = {"inputs": arrays["inputs"][chosen], "labels": arrays["labels"][chosen]}
    inputs, labels = draw_images(rng, some, sizes)
    return inputs, np.searchsorted(np.sort(classes), labels)


def draw_patches(rng: np.random.Generator, arrays: Arrays, sizes: tuple[int, int, int]) -> tuple[AnyArray, AnyArray]:
    """Which picture a piece is from. The splits take theirs from parts of the pictures that do not overlap."""
    inputs, labels = [], []
    for size, (begin, end) in zip(sizes, PLACES, strict=True):
        for label in rng.integers(len(PICTURES), size=size):
            picture = arrays[PICTURES[label]]
            height, width = picture.shape
            x = rng.integers(int(begin * width), int(end * width) - PATCH + 1)
            y = rng.integers(height - PATCH + 1)
            inputs.append(picture[y : y + PATCH, x : x + PATCH])
            labels.append(label)
    return standardise(np.stack(inputs).astype(np.float64)), np.array(labels)


def draw_spectra(rng: np.random.Generator, arrays: Arrays, sizes: tuple[int, int, int]) -> tuple[AnyArray, AnyArray]:
    """The same pieces by the logarithm of their spectrum, which does not depend on where in a piece something lies."""
    inputs, labels = draw_patches(rng, arrays, sizes)
    power = np.log(1e-3 + np.abs(np.fft.rfft2(inputs)))
    return standardise(power.reshape(len(power), -1)), labels


def draw_coordinates(
    rng: np.random.Generator, arrays: Arrays, sizes: tuple[int, int, int]
) -> tuple[AnyArray, AnyArray]:
    """A square of a photograph: from where a pixel is to its colour, through random Fourier features (Tancik 2020)."""
    photograph = arrays[str(rng.choice(["china", "flower"]))]
    side = int(rng.integers(128, 428))
    corner = [rng.integers(length - side + 1) for length in photograph.shape[:2]]
    place = rng.permutation(side * side)[: sum(sizes)]
    row, column = place // side, place % side
    colours = photograph[corner[0] + row, corner[1] + column] / 255.0
    frequencies = rng.normal(size=(2, 32)) * rng.uniform(1.0, 3.0)
    phase = 2 * np.pi * np.stack([row, column], axis=1) / side @ frequencies
    return standardise(np.concatenate([np.sin(phase), np.cos(phase)], axis=1)), standardise(colours)


def draw_series(rng: np.random.Generator, arrays: Arrays, sizes: tuple[int, int, int]) -> tuple[AnyArray, AnyArray]:
    """Time series resampled to one length, each standardised by itself."""
    chosen = rng.permutation(len(arrays["inputs"]))[: sum(sizes)]
    whole = arrays["inputs"][chosen]
    at = np.linspace(0, whole.shape[1] - 1, SIGNAL)
    inputs = np.stack([np.interp(at, np.arange(whole.shape[1]), own) for own in whole])
    inputs = inputs - inputs.mean(axis=1, keepdims=True)
    return inputs / np.maximum(inputs.std(axis=1, keepdims=True), 1e-6), arrays["labels"][chosen]


def draw_utterances(rng: np.random.Generator, arrays: Arrays, sizes: tuple[int, int, int]) -> tuple[AnyArray, AnyArray]:
    """Sequences of vectors, every coefficient standardised over all of them."""
    chosen = rng.permutation(len(arrays["inputs"]))[: sum(sizes)]
    inputs = arrays["inputs"][chosen]
    spoken = (inputs != 0).any(axis=2, keepdims=True)
    mean = inputs.sum(axis=(0, 1)) / spoken.sum()
    spread = np.sqrt((spoken * (inputs - mean) ** 2).sum(axis=(0, 1)) / spoken.sum())
    return spoken * (inputs - mean) / spread, arrays["labels"][chosen]


def draw_windows(rng: np.random.Generator, arrays: Arrays, sizes: tuple[int, int, int]) -> tuple[AnyArray, AnyArray]:
    """Pieces of speeches, and the same one letter on. No speech is in two splits."""
    text, ends = arrays["text"], arrays["ends"]
    begins = np.concatenate([[0], ends[:-1]])
    order = rng.permutation(len(ends))
    first, second = int(0.7 * len(order)), int(0.85 * len(order))
    places = []
    for size, own in zip(sizes, (order[:first], order[first:second], order[second:]), strict=True):
        room = ends[own] - begins[own] - LETTERS
        speech = rng.choice(own, size=size, p=room / room.sum())
        places.append(begins[speech] + (rng.random(size) * (ends[speech] - begins[speech] - LETTERS)).astype(np.int64))
    at = np.concatenate(places)[:, None] + np.arange(LETTERS + 1)
    return text[at[:, :-1]], text[at[:, 1:]]


def draw_words(rng: np.random.Generator, arrays: Arrays, sizes: tuple[int, int, int]) -> tuple[AnyArray, AnyArray]:
    chosen = rng.permutation(len(arrays["tokens"]))[: sum(sizes)]
    return arrays["tokens"][chosen], arrays["labels"][chosen]


def draw_bags(rng: np.random.Generator, arrays: Arrays, sizes: tuple[int, int, int]) -> tuple[AnyArray, AnyArray]:
    """Words as counts of their letters, and of the letters they end in."""
    tokens, labels = draw_words(rng, arrays, sizes)
    units = np.eye(len(WORD_SYMBOLS))[tokens][..., 1:]
    return standardise(np.concatenate([units.sum(axis=1), units[:, -1], units[:, -2]], axis=1)), labels


def draw_slips(rng: np.random.Generator, arrays: Arrays, sizes: tuple[int, int, int]) -> tuple[AnyArray, AnyArray]:
    """A table in whose training part a few entries have their point a place or two too far right."""
    inputs, labels = draw_columns(rng, arrays, sizes)
    entries = inputs if labels.dtype == np.uint8 else labels
    wrong = draw_errors(rng, entries.shape, -2.7, -1.7, sizes[0])
    entries[wrong] *= 10.0 ** rng.integers(1, 3, size=int(wrong.sum()))
    return inputs, labels


_LETTERS, _SYMBOLS = len(WORD_SYMBOLS), len(SPEECH_SYMBOLS)
_SPEECH_LOSS = "loss 1.07, 6-grams of all the text"
_GRU = RecurrentNet(LETTERS, _SYMBOLS, 48, 1, _SYMBOLS, every_step=True, tokens=True)
_TRANSFORMER = Transformer(LETTERS, _SYMBOLS, 32, 2, 1, _SYMBOLS, every_step=True, tokens=True)
_WORD_GRU = RecurrentNet(WORD_LENGTH, _LETTERS, 32, 1, 5, tokens=True)
_WORD_TRANSFORMER = Transformer(WORD_LENGTH, _LETTERS, 32, 2, 1, 5, tokens=True)
_WORD_RNN = RecurrentNet(WORD_LENGTH, _LETTERS, 32, 1, 5, cell="tanh", tokens=True)
_SPEECH_RNN = RecurrentNet(LETTERS, _SYMBOLS, 64, 1, _SYMBOLS, cell="tanh", every_step=True, tokens=True)
_SIZES, _CONV_SIZES, _SPEECH_SIZES = (2048, 256, 512), (4096, 256, 256), (4096, 128, 256)

# What is known to be reachable is from the literature of each data set, or was measured with scikit-learn.
for _family in (
    RealFamily("digits-mlp", "image", "digits", VECTOR_MODELS, (1024, 256, 512), draw_images, "0.97"),
    RealFamily("digits-conv", "image", "digits", (ConvNet(8, (8, 16), 10),), (1024, 256, 256), draw_images, "0.97"),
    RealFamily("mnist-mlp", "image", "mnist", (MLP(196, (48,), 10),), (4096, 256, 512), draw_images, "0.935"),
    RealFamily("mnist-conv", "image", "mnist", (ConvNet(14, (8, 16), 10),), _CONV_SIZES, draw_images, "0.95"),
    RealFamily("patches-mlp", "image", "pictures", (MLP(256, (48,), 8),), _SIZES, draw_patches, "0.43"),
    RealFamily("patches-fft", "image", "pictures", (MLP(144, (48,), 8),), _SIZES, draw_spectra, "0.67"),
    RealFamily("coordinates", "image", "photographs", (MLP(64, (32, 32), 3),), _SIZES, draw_coordinates,
               "0.88, whole photograph", "squared-error"),
    RealFamily("speeches-gru", "text", "speeches", (_GRU,), _SPEECH_SIZES, draw_windows, _SPEECH_LOSS),
    RealFamily("speeches-transformer", "text", "speeches", (_TRANSFORMER,), _SPEECH_SIZES, draw_windows, _SPEECH_LOSS),
    RealFamily("words-gru", "text", "words", (_WORD_GRU,), _CONV_SIZES, draw_words, "0.62 with all words"),
    RealFamily("words-bag", "text", "words", (MLP(78, (48,), 5, "gelu"),), (4096, 256, 512), draw_bags,
               "0.62 with all words and the order of letters"),
    RealFamily("breast-cancer", "tabular", "breast-cancer", (MLP(30, (32, 32), 2, "tanh"),), (320, 96, 152),
               draw_columns, "0.96"),
    RealFamily("diabetes", "tabular", "diabetes", (MLP(10, (32, 32), 1),), (256, 64, 120), draw_columns, "0.36",
               "squared-error"),
    RealFamily("segments", "tabular", "segments", (MLP(18, (32, 32), 7),), (1536, 256, 512), draw_columns, "0.95"),
    RealFamily("bananas", "tabular", "bananas", (MLP(2, (32, 32), 2, "tanh"),), _SIZES, draw_columns, "0.87"),
    RealFamily("phishing", "tabular", "phishing", (MLP(9, (32, 32), 2),), (736, 128, 256), draw_columns, "0.91"),
    RealFamily("abalone", "tabular", "abalone", (MLP(10, (32, 32), 1),), _SIZES, draw_columns, "0.58", "squared-error"),
    RealFamily("osuleaf", "time series", "osuleaf", (ConvNet(SIGNAL, (8, 16, 16), 6, dimensions=1),), (256, 64, 120),
               draw_series, "0.54"),
    RealFamily("acsf1", "time series", "acsf1", (ConvNet(SIGNAL, (8, 16, 16), 10, dimensions=1),), (120, 24, 56),
               draw_series, "0.76 by a random forest, 0.50 by an MLP"),
    # For clipping: whose gradients spike.
    RealFamily("abalone-slips", "tabular", "abalone", (MLP(10, (32, 32), 1, "gelu"),), _SIZES, draw_slips, "0.58",
               "squared-error"),
    RealFamily("segments-slips", "tabular", "segments", (MLP(18, (32, 32), 7, "gelu"),), (1536, 256, 512), draw_slips,
               "0.95"),
    RealFamily("words-rnn", "text", "words", (_WORD_RNN,), _CONV_SIZES, draw_words, "0.62 with all words"),
    # Seen by nobody until a release is judged: other data, or other models of the same.
    RealFamily("mnist-some", "image", "mnist", (MLP(196, (64, 32), 5, "tanh"),), (1536, 256, 512), draw_some_classes,
               "0.99"),
    RealFamily("mnist-deep", "image", "mnist", (ConvNet(14, (8, 16, 16), 10, "gelu"),), _CONV_SIZES, draw_images,
               "0.95"),
    RealFamily("patches-conv", "image", "pictures", (ConvNet(16, (8, 16), 8),), _SIZES, draw_patches,
               "0.67 by spectra"),
    RealFamily("words-transformer", "text", "words", (_WORD_TRANSFORMER,), _CONV_SIZES, draw_words,
               "0.62 with all words"),
    RealFamily("speeches-rnn", "text", "speeches", (_SPEECH_RNN,), _SPEECH_SIZES, draw_windows, _SPEECH_LOSS),
    RealFamily("segments-norm", "tabular", "segments", (MLP(18, (24, 24, 24), 7, "gelu", norm=True),),
               (1536, 256, 512), draw_columns, "0.95"),
    RealFamily("bananas-wide", "tabular", "bananas", (MLP(2, (128, 128), 2),), _SIZES, draw_columns, "0.87"),
    RealFamily("abalone-flat", "tabular", "abalone", (MLP(10, (64,), 1, "tanh"),), _SIZES, draw_columns, "0.58",
               "squared-error"),
    RealFamily("approval", "tabular", "approval", (MLP(6, (32, 32), 1, "gelu"),), (640, 120, 240), draw_columns,
               "0.97", "squared-error"),
    RealFamily("cars", "tabular", "cars", (MLP(7, (32, 32), 1),), (240, 48, 104), draw_columns, "0.81",
               "squared-error"),
    RealFamily("italy-power", "time series", "italy-power", (MLP(24, (32, 32), 2, "gelu"),), (640, 128, 320),
               draw_columns, "0.96"),
    RealFamily("vowels", "time series", "vowels", (RecurrentNet(VOWEL_STEPS, 12, 32, 1, 9),), (384, 64, 192),
               draw_utterances, "0.96"),
    RealFamily("osuleaf-mlp", "time series", "osuleaf", (MLP(SIGNAL, (48,), 6),), (256, 64, 120), draw_series, "0.54"),
):  # fmt: skip
    register_family(_family)
