"""Tasks, families, suites and stored targets."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from loopwright.inner_tasks import Calibration, Split, Task, datasets, families, get_suite, get_task, suites
from loopwright.inner_tasks.errors import LoopwrightError, UnknownNameError
from loopwright.inner_tasks.task import register


@pytest.mark.parametrize("name", families())
def test_every_family_draws_valid_different_and_reproducible_tasks(name: str) -> None:
    family = families()[name]
    first, again, other = family.task(3), family.task(3), family.task(4)
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert first.initial_scale == again.initial_scale
    assert not torch.equal(first.train.inputs, other.train.inputs)
    assert first.shape_key == other.shape_key
    assert [len(s) for s in (first.train, first.control, first.target)] == list(family.sizes)
    assert len(first.target.labels.unique()) > 1
    output = first.model.build()(first.train.inputs[:5])
    assert output.shape[0] == 5
    assert output.shape[1] >= first.classes


@pytest.mark.parametrize("name", families())
def test_splits_share_no_sample(name: str) -> None:
    task = families()[name].task(0)
    rows = {
        split: {x.numpy().tobytes() for x in getattr(task, split).inputs} for split in ("train", "control", "target")
    }
    # digits holds a few images twice, so a tenth of a percent may coincide
    assert len(rows["train"] & rows["target"]) <= len(task.target) / 100
    assert len(rows["control"] & rows["target"]) <= len(task.target) / 100


def test_difficulty_varies_widely_within_a_family() -> None:
    for name in ("mixtures", "teachers", "manifolds"):
        tasks = [families()[name].task(seed) for seed in range(12)]
        assert len({task.classes for task in tasks}) >= 5
        scales = [task.initial_scale for task in tasks]
        assert max(scales) / min(scales) > 1.5


def test_suites_are_apart_and_name_calibrated_tasks() -> None:
    seen: set[str] = set()
    for suite in suites().values():
        names = set(suite.tasks())
        assert not names & seen
        seen |= names
        assert all(get_task(name).calibration is not None for name in sorted(names)[:3])
    assert not set(get_suite("new").families) & set(get_suite("train").families)
    assert len(get_suite("held-out").tasks()) >= 6
    assert {"digits-mlp", "breast-cancer"} <= {name.partition(":")[0] for name in get_suite("new").tasks()}


def test_unknown_names_are_named() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown task family 'imagenet'; known: .*digits-mlp"):
        get_task("imagenet:0")
    with pytest.raises(LoopwrightError, match="family:seed"):
        get_task("mixtures")
    with pytest.raises(UnknownNameError, match="unknown suite 'test'"):
        get_suite("test")
    with pytest.raises(LoopwrightError, match="taken"):
        register(families()["mixtures"])


def test_altered_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, labels = datasets.digits()
    with pytest.raises(LoopwrightError, match="SHA-256"):
        datasets.checked("digits", inputs + np.eye(*inputs.shape), labels)


def broken(task: Task, **changes: object) -> Task:
    return replace(task, **changes)  # type: ignore[arg-type]


def test_a_bad_task_says_what_is_wrong(small_task: Task) -> None:
    x, y = small_task.train.inputs, small_task.train.labels
    for match, change in {
        "NaN": {"train": Split(x.clone().fill_(torch.nan), y)},
        "sample shape": {"control": Split(x[:, :3], y)},
        "labels must lie": {"target": Split(x, y + 5)},
        "want N and N": {"train": Split(x[:4], y)},
        "float32": {"train": Split(x.double(), y)},
        "initial_scale": {"initial_scale": 0.0},
    }.items():
        with pytest.raises(LoopwrightError, match=match):
            broken(small_task, **change)


@pytest.mark.parametrize("curve", [(), ((1.0, 2.0),), ((1.0, 2.0), (1.0, 1.0)), ((1.0, 1.0), (2.0, 1.5)),
                                   ((1.0, 2.0), (3.0, 0.5))])  # fmt: skip
def test_a_bad_calibration_is_refused(curve: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(LoopwrightError, match="curve"):
        Calibration(1.0, 2.0, curve)
