"""Tasks of one's own: from tensors, arrays, a Dataset and an nn.Module."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from loopwright.envs.engine.cost import measure_cost
from loopwright.envs.engine.lanes import Lanes
from loopwright.envs.engine.reference import ReferenceLoop
from loopwright.envs.episode.recorder import fingerprint_task
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.plan import LoopPlan, stack_plans
from loopwright.inner_tasks import MLP, Task, get_task, make_task
from loopwright.inner_tasks.models import find_output_shape

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(300, 6, generator=GENERATOR)
Y = (X[:, 0] + X[:, 1] > 0).long()


def network(*extra: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), *extra, nn.Linear(8, 2))


def trained(task: Task) -> tuple[float, float]:
    """Metric before and after 200 updates."""
    lanes = Lanes(task, 1)
    lanes.load([0], [task], [0])
    before = lanes.evaluate("target")[1].item()
    lanes.run(stack_plans([LoopPlan(learning_rate=1e-2)]), 200)
    return before, lanes.evaluate("target")[1].item()


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (network(), (X, Y)),
        (network, (X.numpy().astype(np.float64), Y.numpy().astype(np.int32))),
        (MLP(6, (8,), 2), TensorDataset(X, Y)),
        (network(), {"train": (X[:200], Y[:200]), "control": (X[200:230], Y[200:230]), "target": (X[230:], Y[230:])}),
    ],
    ids=["module", "function and arrays", "spec and dataset", "splits"],
)
def test_a_task_is_made_of_what_one_has(model: Any, data: Any) -> None:
    task = make_task("mine", model, data)
    assert len(task.train) + len(task.control) + len(task.target) == 300
    before, after = trained(task)
    assert after > max(0.85, before)


def test_regression_and_tokens() -> None:
    linear = make_task("linear", nn.Sequential(nn.Linear(6, 1)), (X, X.sum(1)), loss="squared-error")
    assert linear.train.labels.shape == (210, 1)
    assert trained(linear)[1] > 0.5

    class Letters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(5, 3))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return (tokens[..., None] == torch.arange(5)).float() @ self.table

    tokens = torch.randint(5, (300, 4), generator=GENERATOR)
    model = lambda: nn.Sequential(Letters(), nn.Linear(3, 5))  # noqa: E731
    task = make_task("letters", model, (tokens, (tokens + 1) % 5), allow_repeats=True)
    assert task.model.vocabulary == 5
    assert trained(task)[1] > 0.5


def test_activations_belong_to_the_block_before() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Tanh(), nn.Linear(8, 2))
    blocks = make_task("mine", model, (X, Y)).model.build()
    assert [sum(1 for _ in block.parameters()) for block in blocks] == [2, 2, 2]
    torch.testing.assert_close(blocks(X).shape, torch.Size([300, 2]))


def test_every_run_starts_from_weights_of_its_own_and_the_seed_repeats_them() -> None:
    task = make_task("mine", network(), (X, Y))
    weights = []
    for seed in (0, 1, 0):
        weights.append(torch.cat([p.detach().flatten() for p in task.model.build(seed).parameters()]))
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])


def test_a_fingerprint_does_not_depend_on_where_the_function_lies_in_memory() -> None:
    first, second = (make_task("mine", lambda: network(), (X, Y)) for _ in range(2))
    assert fingerprint_task(first) == fingerprint_task(second)
    assert fingerprint_task(first) != fingerprint_task(make_task("mine", network(nn.Tanh()), (X, Y)))


class Uneven(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        if i >= 4:
            raise IndexError
        return torch.zeros(i + 1), 0


class Listed(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


class Triples(Uneven):
    def __getitem__(self, i: int) -> Any:
        return (1, 2, 3)


class Nameless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Branching(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if self.weight.sum() > 0 else super().forward(-x)


def frozen() -> nn.Module:
    model = network()
    model[0].requires_grad_(False)
    return model


GOOD = (X, Y)
TWICE = (torch.cat([X, X]), torch.cat([Y, Y]))
LEAKING = {"train": (X[:200], Y[:200]), "control": (X[200:230], Y[200:230]), "target": (X[199:], Y[199:])}


@pytest.mark.parametrize(
    ("model", "data", "options", "message"),
    [
        (
            network(),
            LEAKING,
            {},
            r"30 inputs are in control and in target|1 inputs are in train and in target \(row 199",
        ),
        (network(), TWICE, {}, "inputs are in train and in control .*allow_repeats=True"),
        (network(nn.BatchNorm1d(8)), GOOD, {}, r"module 2 \(BatchNorm1d\) keeps running statistics"),
        (network(nn.Dropout(0.1)), GOOD, {}, r"module 2 \(Dropout\) is random"),
        (frozen, GOOD, {}, "parameter 0.weight is frozen"),
        (Nameless, GOOD, {}, "Nameless whose blocks cannot be told apart"),
        (nn.Sequential(Nameless()), GOOD, {}, r"module 0 \(Nameless\) holds parameters but has no reset_parameters"),
        (nn.Sequential(nn.ReLU()), GOOD, {}, "no parameters"),
        (lambda: 3, GOOD, {}, "gave a int, not an nn.Module"),
        (lambda: nn.Sequential(Branching(6, 2)), GOOD, {}, "cannot be trained in lanes"),
        (network(), (X * float("nan"), Y), {}, "split train: inputs hold NaN"),
        (network(), (X, X.sum(1) / 0), {"loss": "squared-error"}, r"wants torch.float32 of shape \[N, 2\]"),
        (nn.Sequential(nn.Linear(6, 1)), (X, X.sum(1) / 0), {"loss": "squared-error"}, "labels hold NaN or infinity"),
        (network(), (X, Y.float()), {}, "labels are torch.float32"),
        (network(), (X, Y + 1), {}, r"labels must lie in \[0, 2\)"),
        (network(), (X, Y[:-1]), {}, "300 inputs and 299 labels"),
        (network(), X, {}, r"want \(inputs, labels\) or a Dataset, got Tensor"),
        (network(), {"train": GOOD, "test": GOOD}, {}, r"splits \['test', 'train'\]; want train, control, target"),
        (network(), GOOD, {"fractions": (0.5, 0.5, 0.5)}, "fractions must be three numbers above 0 that add up to 1"),
        (network(), Uneven(), {}, "the Dataset's inputs have different shapes"),
        (network(), Endless(), {}, "a Endless has no length"),
        (network(), Triples(), {}, r"must give pairs \(input, label\)"),
        (network(), GOOD, {"loss": "hinge"}, "unknown loss 'hinge'"),
    ],
)
def test_what_would_spoil_the_result_is_refused(model: Any, data: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LoopwrightError, match=message):
        make_task("mine", model, data, **options)


WHOLE = torch.randint(200, (300, 6), generator=GENERATOR)


@pytest.mark.parametrize("model", [lambda: network(), lambda: MLP(6, (8,), 2)], ids=["module", "spec"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.uint16, torch.bool])
def test_whole_numbers_for_a_model_of_numbers_become_float32(model: Callable[[], Any], dtype: torch.dtype) -> None:
    given = WHOLE.to(dtype)
    task = make_task("mine", model(), (given, Y), allow_repeats=True)
    assert task.train.inputs.dtype == torch.float32
    rows = {tuple(row) for row in given.float().tolist()}
    assert {tuple(row) for row in task.train.inputs.tolist()} <= rows
    trained(task)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_whole_numbers_for_a_model_of_tokens_are_tokens(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Embedding(200, 3), nn.Flatten(), nn.Linear(18, 2))
    task = make_task("mine", model, (WHOLE.to(dtype), Y), allow_repeats=True)
    assert task.train.inputs.dtype == torch.int64
    assert task.model.vocabulary is not None
    with pytest.raises(
        LoopwrightError, match=r"inputs are torch.float32, but the model takes tokens|cannot take inputs"
    ):
        make_task("mine", model, GOOD)


def test_a_tensor_is_detached_from_where_it_comes_from() -> None:
    inputs = X.clone().requires_grad_()
    for data in ((inputs, Y), [*zip(inputs, Y, strict=True)]):
        task = make_task("mine", network(), data if isinstance(data, tuple) else Listed(data))
        assert not task.train.inputs.requires_grad
        assert inputs.requires_grad


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (nn.Sequential(nn.Linear(7, 2)), X, r"cannot take inputs \[N, 6\] of torch.float32"),
        (
            nn.Sequential(nn.Linear(7, 2)),
            WHOLE,
            r"\[N, 6\] of torch.int64: .*taken for numbers .*shapes cannot be mult",
        ),
        (nn.Sequential(nn.Linear(1, 2)), X[:, 0], r"cannot take inputs \[N\] of .*of one feature inputs\[:, None\]"),
        (network(), X.to_sparse(), "task mine, inputs: a sparse or quantized tensor; give .to_dense"),
        (network(), X + 0j, "task mine, inputs: values are complex"),
        (network(), X.to("meta"), "task mine, inputs: values are on the device 'meta'"),
        (network(), X[0, 0], r"inputs are a single number; want \[N, \.\.\.\]"),
        (network(), [["a"] * 6] * 300, "task mine, inputs: values are <U1; want numbers"),
        (network(), np.array([[None] * 6] * 300), "task mine, inputs: values are object; want numbers"),
        (network(), [[1.0] * 6] * 299 + [[1.0]], "task mine, inputs: no array of numbers"),
        (network(), None, "task mine, inputs: values are object"),
        (3, X, "the model is a int; want a model spec, an nn.Sequential"),
        (nn.Linear, X, "the model's function failed, called without arguments"),
    ],
)
def test_inputs_that_cannot_be_taken_are_refused_in_a_line(model: Any, inputs: Any, message: str) -> None:
    with pytest.raises(LoopwrightError, match=message) as caught:
        make_task("mine", model, (inputs, Y))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (Y + 0j, {}, "task mine, labels: values are complex"),
        (Y.to_sparse(), {}, "task mine, labels: a sparse"),
        (np.array(["a"] * 300), {}, "task mine, labels: values are <U1"),
        (Y, {"fractions": 3}, "fractions must be three numbers above 0 that add up to 1, got 3"),
        (Y, {"seed": -1}, "seed must be a whole number, 0 or more, got -1"),
    ],
)
def test_labels_and_options_that_cannot_be_are_refused_in_a_line(
    labels: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LoopwrightError, match=message):
        make_task("mine", network(), (X, labels), **options)
    with pytest.raises(LoopwrightError, match="the name of a task must be text"):
        make_task(3, network(), GOOD)  # type: ignore[arg-type]


@pytest.mark.parametrize("cached", [False, True])
def test_torchs_own_random_numbers_are_left_alone(cached: bool) -> None:
    """Drawing tasks, building models, training: a user's loop beside it draws what it would without."""
    if not cached:
        for cache in (get_task, find_output_shape, measure_cost):
            cache.cache_clear()
    model, before = network(), torch.get_rng_state()
    task = make_task("mine", model, (X, Y))
    lanes = Lanes(get_task("digits-conv:0"), 1)
    lanes.load([0], [get_task("digits-conv:0")], [3])
    lanes.run(stack_plans([LoopPlan()]), 2)
    ReferenceLoop(task, 1).run(LoopPlan(), 2)
    assert torch.equal(torch.get_rng_state(), before)
