"""Families on real data that ships inside installed packages: nothing is downloaded. Each array is checksummed.

Every draw takes a new random split and subset of the data, rescales the features and mislabels a few training
samples, so that two draws are two different runs of the same problem.
"""

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn import datasets as sklearn_datasets

from loopwright.inner_tasks.errors import LoopwrightError
from loopwright.inner_tasks.models import MLP, ConvNet, ModelSpec
from loopwright.inner_tasks.synthetic import flip_labels
from loopwright.inner_tasks.task import Kind, TaskFamily, register

Array = npt.NDArray[Any]
CHECKSUMS = {
    "digits": "f6d9e39f37dc45d327f6db33428ee58970ccceabb2535a5c179de35886b70443",
    "breast_cancer": "25e2eb7b7a8745b1bde5ba18bc4969983d2e2f403291ecd5bde4a29ef30c3859",
}


def checked(name: str, inputs: Array, labels: Array) -> tuple[Array, Array]:
    """The arrays, if their SHA-256 is the recorded one; ``LoopwrightError`` otherwise."""
    digest = hashlib.sha256(np.ascontiguousarray(inputs, dtype=np.float64).tobytes())
    digest.update(np.ascontiguousarray(labels, dtype=np.int64).tobytes())
    if digest.hexdigest() != CHECKSUMS[name]:
        raise LoopwrightError(f"data set {name}: SHA-256 {digest.hexdigest()}, expected {CHECKSUMS[name]}")
    return inputs, labels


@lru_cache
def digits() -> tuple[Array, Array]:
    """1797 grey images of 8x8 as ``[1797, 64]`` in [0, 16], ten classes (scikit-learn; UCI, CC BY 4.0)."""
    data = sklearn_datasets.load_digits()
    return checked("digits", data.data, data.target)


@lru_cache
def breast_cancer() -> tuple[Array, Array]:
    """569 cases of 30 measurements, two classes (scikit-learn; UCI Wisconsin Diagnostic, CC BY 4.0)."""
    data = sklearn_datasets.load_breast_cancer()
    return checked("breast_cancer", data.data, data.target)


class _Real(TaskFamily):
    def __init__(self, name: str, kind: Kind, source: str, data: str, model: ModelSpec, sizes: tuple[int, int, int]):
        self.name, self.kind, self.source, self.model, self.sizes = name, kind, source, model, sizes
        self.data = data

    def draw(self, rng: np.random.Generator) -> tuple[Array, Array, int]:
        inputs, labels = {"digits": digits, "breast_cancer": breast_cancer}[self.data]()
        chosen = rng.permutation(len(inputs))[: sum(self.sizes)]
        x, y = inputs[chosen], labels[chosen]
        # Images keep the ratio of their pixels; the columns of a table are each standardised.
        centre, spread = (x.mean(), x.std()) if self.kind == "image" else (x.mean(axis=0), x.std(axis=0))
        x = (x - centre) / spread * 10.0 ** rng.uniform(-0.3, 0.3)
        classes = int(labels.max()) + 1
        mislabelled = flip_labels(rng, y, classes, rng.uniform(0, 0.1))
        trained = np.arange(len(y)) < self.sizes[0]
        return x, np.where(trained, mislabelled, y), classes


for _family in (
    _Real("digits-mlp", "image", "scikit-learn load_digits", "digits", MLP(64, (32, 32), 10), (1024, 256, 512)),
    _Real("digits-conv", "image", "scikit-learn load_digits", "digits", ConvNet(8, (8, 16), 10), (1024, 256, 512)),
    _Real("breast-cancer", "tabular", "scikit-learn load_breast_cancer", "breast_cancer", MLP(30, (32, 32), 2, "tanh"),
          (320, 96, 152)),
):  # fmt: skip
    register(_family)
