"""Real data: checked, cached, and refused in words."""

import io
import json
import pickle
import pwd
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopwright.envs.loop.errors import DataError, UnknownNameError
from loopwright.inner_tasks import datasets
from loopwright.inner_tasks.datasets import SOURCES, digest, find_missing, load

CACHED = "phishing"  # the smallest that is kept in the cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of one's own, and nothing remembered from before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load.cache_clear()
    yield tmp_path / "loopwright"
    load.cache_clear()


def damage(kept: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(kept, **arrays)
    load.cache_clear()


@pytest.mark.parametrize("name", SOURCES)
def test_every_array_is_the_one_on_record(name: str) -> None:
    recorded = json.loads(datasets.CHECKSUMS_FILE.read_text())[name]
    arrays = load(name)
    assert {key: digest(array) for key, array in arrays.items()} == recorded
    assert SOURCES[name].licence
    with pytest.raises(ValueError, match="read-only"):
        next(iter(arrays.values()))[0] = 0


def test_a_digest_sees_values_shape_and_type() -> None:
    array = np.arange(6)
    others = [array + 1, array.reshape(2, 3), array.astype(np.int32)]
    assert len({digest(a) for a in [array, *others]}) == 4
    assert digest(np.arange(12)[::2]) == digest(np.arange(12)[::2].copy())


def test_data_is_parsed_once_and_kept_where_xdg_says(cache: Path) -> None:
    first = load(CACHED)
    (kept,) = cache.iterdir()
    assert kept.suffix == ".npz"
    changed = kept.stat().st_mtime_ns
    load.cache_clear()
    again = load(CACHED)
    assert kept.stat().st_mtime_ns == changed
    assert all(np.array_equal(first[key], again[key]) for key in first)
    load("digits")
    assert list(cache.iterdir()) == [kept]  # what scikit-learn brings needs no cache


def test_a_corrupt_cache_is_named_and_what_to_do(cache: Path) -> None:
    load(CACHED)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    for content in (whole[:100], b"", whole[:-200] + bytes(200)):
        kept.write_bytes(content)
        load.cache_clear()
        with pytest.raises(DataError, match=f"{kept.name}.*delete it"):
            load(CACHED)


class Runs:
    """What a pickle of it does when it is loaded."""

    def __reduce__(self) -> Any:
        return exec, ("open('canary', 'w').close()",)


def test_a_cache_of_another_kind_is_named_and_not_executed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = dict(load(CACHED))
    monkeypatch.chdir(cache)
    (kept,) = cache.iterdir()
    huge, one = io.BytesIO(), io.BytesIO()
    np.save(one, arrays["inputs"])
    np.lib.format.write_array_header_1_0(huge, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})

    def pack(name: str, content: bytes) -> None:
        with zipfile.ZipFile(kept, "w") as archive:
            archive.writestr(name, content)

    kinds: dict[str, Callable[[], Any]] = {
        "text": lambda: kept.write_text("inputs,labels"),
        "one array": lambda: kept.write_bytes(one.getvalue()),
        "pickle": lambda: kept.write_bytes(pickle.dumps(Runs())),
        "pickled array": lambda: np.savez(kept, inputs=np.array([Runs()], dtype=object)),
        "compressed": lambda: np.savez_compressed(kept, inputs=np.zeros(10**6)),
        "no array": lambda: pack("inputs", b"text"),
        "huge": lambda: pack("inputs.npy", huge.getvalue()),
        "folder": lambda: (kept.unlink(), kept.mkdir()),
    }
    for write in kinds.values():
        write()
        load.cache_clear()
        with pytest.raises(DataError, match=f"cannot read .*{kept.name} .*delete it") as caught:
            load(CACHED)
        assert str(caught.value).isprintable()
    assert not Path("canary").exists()


def test_without_a_home_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # the system does not know the user
    load.cache_clear()
    with pytest.raises(DataError, match=r"no home folder to keep data source phishing in \(.*\); set XDG_CACHE_HOME"):
        load(CACHED)
    assert load("digits")["inputs"].shape == (1797, 64)  # what scikit-learn brings needs none


def test_a_wrong_checksum_is_refused_wherever_the_data_is_from(cache: Path) -> None:
    arrays = dict(load(CACHED))
    (kept,) = cache.iterdir()
    damage(kept, arrays | {"labels": arrays["labels"] ^ 1})
    with pytest.raises(DataError, match=f"phishing: delete .*{kept.name}.* gives SHA-256 .* expected"):
        load(CACHED)
    damage(kept, {"inputs": arrays["inputs"]})
    with pytest.raises(DataError, match="expected"):
        load(CACHED)
    digits = SOURCES["digits"].read()
    with pytest.raises(DataError, match="digits: scikit-learn 9 gives SHA-256"):
        datasets._check("digits", digits | {"labels": digits["labels"][::-1]}, "scikit-learn 9")


def test_a_missing_package_names_the_extra(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_missing(CACHED) is None
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "river", raising=False)
    with pytest.raises(DataError, match=r"phishing needs the package river: pip install 'loopwright\[tabular\]'"):
        load(CACHED)


def test_a_cache_that_cannot_be_written_says_which_and_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_the_way))
    load.cache_clear()
    with pytest.raises(DataError, match=r"cannot (read|write) .*set XDG_CACHE_HOME"):
        load(CACHED)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    monkeypatch.setenv("XDG_CACHE_HOME", str(locked))
    try:
        (locked / "probe").touch()
    except PermissionError:
        with pytest.raises(DataError, match=r"cannot write .*Permission denied.*set XDG_CACHE_HOME"):
            load(CACHED)
    load.cache_clear()


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown data source 'imagenet'; known: digits"):
        load("imagenet")
