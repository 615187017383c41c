"""Tasks, families, suites and stored targets."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.inner_tasks import Calibration, Split, Task, get_suite, get_task, list_families
from loopwright.inner_tasks.datasets import SOURCES, load
from loopwright.inner_tasks.family import Variation
from loopwright.inner_tasks.losses import compute_losses
from loopwright.inner_tasks.registry import register_family
from loopwright.inner_tasks.sequences import Grammar
from loopwright.inner_tasks.synthetic import draw_labels
from loopwright.inner_tasks.task import SPLITS


@pytest.mark.parametrize("name", list_families())
def test_every_family_draws_valid_different_and_reproducible_tasks(name: str) -> None:
    family = list_families()[name]
    first, again, other = family.make_task(3), family.make_task(3), family.make_task(4)
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert torch.equal(first.target.labels, again.target.labels)
    assert first.initial_scale == again.initial_scale
    assert not torch.equal(first.train.inputs, other.train.inputs)
    assert [len(s) for s in (first.train, first.control, first.target)] == list(family.sizes)
    assert len(first.target.labels.unique()) > 1
    assert other.shape_key in {family.make_plain(0, shape).shape_key for shape in range(len(family.models))}
    assert family.draw_shape(3) == first.shape_key  # known without drawing


REPEATED_IN_THE_DATA = {"phishing": 0.5, "segments": 0.15, "segments-norm": 0.15, "segments-slips": 0.15,
                        "grammar-transformer": 0.01, "words-bag": 0.02, "digits-mlp": 0.01, "digits-conv": 0.01,
                        "rosenbrock": 0.01}  # fmt: skip


@pytest.mark.parametrize("name", list_families())
def test_splits_share_no_sample_but_those_that_the_data_repeats(name: str) -> None:
    task = list_families()[name].make_plain()
    rows = {split: {x.numpy().tobytes() for x in getattr(task, split).inputs} for split in SPLITS}
    allowed = REPEATED_IN_THE_DATA.get(name, 0.0)
    assert len(rows["train"] & rows["target"]) <= allowed * len(task.target)
    assert len(rows["control"] & rows["target"]) <= allowed * len(task.target)


def test_a_speech_is_in_one_split_only() -> None:
    task = list_families()["speeches-gru"].make_plain()
    text, ends = load("speeches")["text"].tobytes(), load("speeches")["ends"]
    speeches = {}
    for split in SPLITS:
        windows = getattr(task, split).inputs[:100].to(torch.uint8).numpy()
        places = [text.find(window.tobytes()) for window in windows]
        unique = [place for place, window in zip(places, windows, strict=True) if text.count(window.tobytes()) == 1]
        assert len(unique) > 50
        speeches[split] = set(np.searchsorted(ends, unique, side="right").tolist())
    assert not speeches["train"] & speeches["target"]
    assert not speeches["control"] & speeches["target"]


def test_the_suite_is_varied() -> None:
    kinds = [family.kind for family in list_families().values() if family.requires is not None]
    assert len(list_families()) >= 20
    assert len(kinds) >= 10
    assert set(kinds) == {"image", "text", "tabular", "time series"}


def test_what_new_tasks_are_made_of_was_never_trained_on() -> None:
    known, new = ([list_families()[name] for name in get_suite(suite).families] for suite in ("varied", "new"))
    assert set(get_suite("train").families) < set(get_suite("varied").families)
    assert {family.kind for family in new} == {"image", "text", "tabular", "time series"}
    assert not {family.requires for family in new} & {family.requires for family in known}
    assert all(family.requires is None or SOURCES[family.requires].extra is None for family in known)


def test_difficulty_varies_widely_within_a_family() -> None:
    for name in ("mixtures", "teachers", "manifolds"):
        tasks = [list_families()[name].make_task(seed) for seed in range(24)]
        assert len({len(task.target.labels.unique()) for task in tasks}) >= 5
        assert len({task.model for task in tasks}) == 3
        scales = [task.initial_scale for task in tasks]
        assert max(scales) / min(scales) > 10
        assert scales.count(1.0) >= 6


def test_a_variation_does_what_it_says() -> None:
    family = list_families()["mixtures"]

    def drawn(**changes: Any) -> Task:
        return family.sample(family.make_generator(0), "varied", Variation(**changes))

    plain = drawn()
    assert torch.equal(drawn(feature_scale=2.0).train.inputs, 2.0 * plain.train.inputs)
    spread = drawn(feature_spread=0.5).train.inputs / plain.train.inputs
    torch.testing.assert_close(spread, spread[:1].expand_as(spread))
    assert spread[0].std() > 0.3
    repeated = drawn(repeats=4).train.inputs
    assert len(repeated.unique(dim=0)) == len(repeated) // 4
    noisy = drawn(label_noise=0.3)
    changed = (noisy.target.labels != plain.target.labels).float().mean()
    assert 0.1 < changed < 0.3
    assert drawn(shape=1).model == family.models[1]
    regression = list_families()["quadratic"]
    exact, noisy = (regression.sample(regression.make_generator(0), "x", Variation(label_noise=n)) for n in (0.0, 0.5))
    added = (noisy.train.labels - exact.train.labels).std() / exact.train.labels.std()
    assert added.item() == pytest.approx(0.5, rel=0.1)


def test_the_entropy_of_a_grammar_is_what_the_best_model_pays() -> None:
    """The empirical frequencies of a long text under the grammar's own rules."""
    family = list_families()["grammar"]
    assert isinstance(family, Grammar)
    task = family.make_plain(0)
    rules = family._rules(family.make_generator(0))
    tokens, following = task.train.inputs.numpy(), task.train.labels.numpy()
    paid = -np.log(rules[tokens[:, :-1], tokens[:, 1:], following[:, 1:]]).mean()
    assert paid == pytest.approx(family.entropy(0), rel=0.02)


def test_suites_are_apart_and_name_calibrated_tasks() -> None:
    seen: set[str] = set()
    for suite in (get_suite(name) for name in ("varied", "held-out", "new")):
        names = set(suite.tasks())
        assert not names & seen
        seen |= names
        assert all(get_task(name).calibration is not None for name in sorted(names)[:3])
    assert not set(get_suite("new").families) & set(get_suite("varied").families)
    assert set(get_suite("train").tasks()) < set(get_suite("varied").tasks())
    assert len(get_suite("held-out").tasks()) >= 6
    assert {list_families()[name.partition(":")[0]].kind for name in get_suite("new").tasks()} == {
        "image", "text", "tabular", "time series"
    }  # fmt: skip
    assert set(get_suite("demo").tasks()) <= set(get_suite("train").tasks())
    assert not set(get_suite("demo").tasks()) & set(get_suite("demo-held-out").tasks())


def test_unknown_names_are_named() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown task family 'imagenet'; known: .*digits-mlp"):
        get_task("imagenet:0")
    with pytest.raises(LoopwrightError, match="family:seed"):
        get_task("mixtures")
    with pytest.raises(UnknownNameError, match="unknown suite 'test'"):
        get_suite("test")
    with pytest.raises(LoopwrightError, match="taken"):
        register_family(list_families()["mixtures"])


def broken(task: Task, **changes: object) -> Task:
    return replace(task, **changes)  # type: ignore[arg-type]


def test_a_bad_task_says_what_is_wrong(small_task: Task) -> None:
    x, y = small_task.train.inputs, small_task.train.labels
    for match, change in {
        "inputs hold NaN": {"train": Split(x.clone().fill_(torch.nan), y)},
        "sample shape": {"control": Split(x[:, :3], y)},
        r"labels must lie in \[0, 2\)": {"target": Split(x, y + 5)},
        "want N and N": {"train": Split(x[:4], y)},
        "torch.float64 inputs, the model takes torch.float32": {"train": Split(x.double(), y)},
        r"squared-error on outputs \[N, 2\] wants torch.float32 of shape \[N, 2\]": {"loss": "squared-error"},
        "unknown loss 'hinge'": {"loss": "hinge"},
        "initial_scale": {"initial_scale": 0.0},
    }.items():
        with pytest.raises(LoopwrightError, match=match):
            broken(small_task, **change)


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    task = list_families()["recall"].make_plain()
    with pytest.raises(LoopwrightError, match=r"tokens must lie in \[0, 16\)"):
        broken(task, train=Split(task.train.inputs + 16, task.train.labels))
    with pytest.raises(LoopwrightError, match=r"float32 inputs, the model takes torch.int64"):
        broken(task, train=Split(task.train.inputs.float(), task.train.labels))


@pytest.mark.parametrize("curve", [(), ((1.0, 2.0),), ((1.0, 2.0), (1.0, 1.0)), ((1.0, 1.0), (2.0, 1.5)),
                                   ((1.0, 2.0), (3.0, 0.5))])  # fmt: skip
def test_a_bad_calibration_is_refused(curve: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(LoopwrightError, match="curve"):
        Calibration(1.0, 2.0, curve)


def test_labels_are_drawn_by_the_softmax_of_their_logits() -> None:
    logits = np.log([[0.7, 0.2, 0.1]])
    drawn = draw_labels(np.random.default_rng(0), np.repeat(logits, 20_000, axis=0))
    assert np.bincount(drawn) / len(drawn) == pytest.approx([0.7, 0.2, 0.1], abs=0.01)


@pytest.mark.parametrize(("name", "least"), [("forests", 0.3), ("topics", 0.3), ("clouds", 0.12)])
def test_nobody_can_be_sure_of_noisy_families(name: str, least: float) -> None:
    """The nearest neighbours of a sample often belong to another class, however many samples there are."""
    family = list_families()[name]
    shares = []
    for seed in range(6):
        task = family.make_plain(seed)
        nearest = torch.cdist(task.target.inputs, task.train.inputs).argmin(dim=1)
        shares.append((task.train.labels[nearest] != task.target.labels).float().mean().item())
    assert np.mean(shares) > least


def measure_spikes(family: str) -> float:
    """The largest norm of a microbatch's gradient over the typical one, at the initial weights; median of 8 draws."""
    ratios = []
    for seed in range(8):
        task = list_families()[family].make_task(seed)
        model = task.model.build()
        norms = []
        for begin in range(0, 960, 16):
            inputs, labels = (part[begin : begin + 16] for part in (task.train.inputs, task.train.labels))
            gradients = torch.autograd.grad(
                compute_losses(task.loss, model(inputs), labels).mean(), list(model.parameters())
            )
            norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm())
        ratios.append((torch.stack(norms).max() / torch.stack(norms).median()).item())
    return float(np.median(ratios))


def test_gradients_spike_where_that_is_what_a_family_is_for() -> None:
    assert max(measure_spikes(name) for name in ("functions", "mixtures")) < 2
    assert min(measure_spikes(name) for name in ("outliers", "glitches", "abalone-slips", "segments-slips")) > 2


@pytest.mark.parametrize("name", ["outliers", "glitches", "abalone-slips", "segments-slips"])
def test_gross_errors_are_in_the_training_data_alone(name: str) -> None:
    family = list_families()[name]
    largest = []
    for seed in range(6):
        task = family.make_plain(seed)
        which = "labels" if family.loss == "squared-error" else "inputs"
        largest.append([getattr(split, which).abs().max().item() for split in (task.train, task.target)])
    errors, clean = np.median(largest, axis=0)
    assert errors > 2 * clean
