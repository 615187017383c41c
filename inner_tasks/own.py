"""A task of your own: from tensors, arrays or a ``Dataset``, and from an ``nn.Module``.

    task = make_task("mine", nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3)), (inputs, labels))

What would make its result worthless is refused here, with a message that says what it is: samples in two splits, a
model that keeps state between batches, blocks that cannot be told apart, values that are not finite.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import Dataset

from loopwright.envs.loop.errors import LoopwrightError
from loopwright.inner_tasks.losses import LossName, compute_losses
from loopwright.inner_tasks.models import ModelSpec, find_output_shape
from loopwright.inner_tasks.task import SPLITS, Split, Task

Data = tuple[Any, Any] | Dataset[Any]
Model = ModelSpec | nn.Module | Callable[[], nn.Module]
STATEFUL_MODULES = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
RANDOM_MODULES = (nn.modules.dropout._DropoutNd,)


def make_task(
    name: str,
    model: Model,
    data: Data | Mapping[str, Data],
    *,
    loss: LossName = "cross-entropy",
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    allow_repeats: bool = False,
) -> Task:
    """A task without a target yet; ``calibrate(task)`` finds one.

    Args:
        name: what results and ledgers call it.
        model: a model spec; or an ``nn.Sequential`` of blocks, which is initialised afresh for every run by the
            ``reset_parameters`` of its modules; or a function that builds one.
        data: inputs ``[N, ...]`` and labels ``[N, ...]``, tensors or arrays; or a ``Dataset`` of such pairs; or a
            mapping of "train", "control" and "target" to either, where they are split already. Floating-point inputs
            become float32. Whole numbers and booleans are taken for tokens (int64) by a model that takes tokens, and
            become float32 for one that takes numbers; an ``nn.Module`` that can take both gets tokens. Tensors are
            detached: no gradient goes back to where they come from.
        loss: "cross-entropy" or "squared-error" (``inner_tasks.losses``).
        fractions: shares of train, control and target, where the split is made here, at random.
        seed: of that split.
        allow_repeats: let samples with equal inputs lie in several splits.

    Raises:
        LoopwrightError: something does not fit; the message names it.
    """
    if not isinstance(name, str):
        raise LoopwrightError(f"the name of a task must be text, got a {type(name).__name__}")
    splits = _given(name, data) if isinstance(data, Mapping) else _divided(name, _tensors(name, data), fractions, seed)
    spec, outputs = _find_spec(name, model, splits["train"][0])
    made = {
        key: Split(_convert(name, inputs, spec), _type_labels(labels, loss, outputs))
        for key, (inputs, labels) in splits.items()
    }
    task = Task(name, spec, made["train"], made["control"], made["target"], loss)
    if not allow_repeats:
        _check_leaks(name, made)
    _check_trainable(task)
    return task


@dataclass(frozen=True, eq=False)
class OwnModel(ModelSpec):
    """A user's model as a spec; equal only to itself.

    Raises ``LoopwrightError`` unless ``factory`` builds an ``nn.Sequential`` of blocks without state.
    """

    factory: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tokens: int | None

    def __post_init__(self) -> None:
        self.build()

    def __repr__(self) -> str:
        return f"OwnModel({self.build()}, {self.shape})"  # the same in every process, unlike the factory's

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def vocabulary(self) -> int | None:
        return self.tokens

    def construct(self) -> nn.Sequential:
        try:
            model = self.factory()
        except TypeError as problem:  # a class, or a function of something
            raise LoopwrightError(f"the model's function failed, called without arguments: {problem}") from problem
        if not isinstance(model, nn.Module):
            raise LoopwrightError(f"the model's function gave a {type(model).__name__}, not an nn.Module")
        _check_modules(model)
        return _blocks(model)


def _factory(model: nn.Module | Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    if not isinstance(model, nn.Module):
        if not callable(model):
            raise LoopwrightError(
                f"the model is a {type(model).__name__}; want a model spec, an nn.Sequential, or a function giving one"
            )
        return model
    for where, module in model.named_modules():
        own = next(module.parameters(recurse=False), None)
        if own is not None and not callable(getattr(module, "reset_parameters", None)):
            raise LoopwrightError(
                f"module {where or 'model'} ({type(module).__name__}) holds parameters but has no reset_parameters() "
                f"to start a run afresh with; give a function that builds the model instead"
            )
    kept = copy.deepcopy(model)

    def fresh() -> nn.Module:
        copied = copy.deepcopy(kept)
        for module in copied.modules():
            if next(module.parameters(recurse=False), None) is not None:
                cast(Any, module).reset_parameters()
        return copied

    return fresh


def _check_modules(model: nn.Module) -> None:
    for where, module in model.named_modules():
        what = f"module {where or 'model'} ({type(module).__name__})"
        if isinstance(module, STATEFUL_MODULES) and module.track_running_stats:
            raise LoopwrightError(
                f"{what} keeps running statistics, which a snapshot of the weights would not bring back; use LayerNorm "
                f"or GroupNorm, or track_running_stats=False"
            )
        if isinstance(module, RANDOM_MODULES) and module.p > 0:
            raise LoopwrightError(f"{what} is random, so that a run could not be replayed; leave it out, or set p=0")
    for where, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise LoopwrightError(f"parameter {where} is frozen; make it a buffer: every parameter is trained here")


def _blocks(model: nn.Module) -> nn.Sequential:
    """The model's children as blocks: those without parameters belong to the block before, or to the first."""
    if not isinstance(model, nn.Sequential):
        raise LoopwrightError(
            f"the model is a {type(model).__name__} whose blocks cannot be told apart; give an nn.Sequential of blocks "
            f"from input to output, or nn.Sequential(model), one block, which leaves the knobs depth and sweep idle"
        )
    groups: list[list[nn.Module]] = [[]]
    for child in model:
        has_parameters = next(child.parameters(), None) is not None
        if has_parameters and any(next(other.parameters(), None) is not None for other in groups[-1]):
            groups.append([])
        groups[-1].append(child)
    if next(model.parameters(), None) is None:
        raise LoopwrightError("the model has no parameters")
    return nn.Sequential(*(group[0] if len(group) == 1 else nn.Sequential(*group) for group in groups))


def _tensors(name: str, data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(data, Dataset):
        if not hasattr(data, "__len__"):
            raise LoopwrightError(f"task {name}: a {type(data).__name__} has no length; give a Dataset with __len__")
        items = [data[i] for i in range(len(data))]
        if not items or not all(isinstance(item, (tuple, list)) and len(item) == 2 for item in items):
            raise LoopwrightError(f"task {name}: a Dataset must give pairs (input, label), and at least one")
        pair = [
            [_tensor(f"task {name}, a Dataset's {what}", part) for part in parts]
            for parts, what in zip(zip(*items, strict=True), ("inputs", "labels"), strict=True)
        ]
        for parts, what in zip(pair, ("inputs", "labels"), strict=True):
            shapes = {tuple(part.shape) for part in parts}
            if len(shapes) > 1:
                raise LoopwrightError(f"task {name}: the Dataset's {what} have different shapes: {sorted(shapes)}")
        return torch.stack(pair[0]), torch.stack(pair[1])
    if not (isinstance(data, (tuple, list)) and len(data) == 2):
        raise LoopwrightError(f"task {name}: want (inputs, labels) or a Dataset, got {type(data).__name__}")
    inputs, labels = (
        _tensor(f"task {name}, {what}", part) for what, part in zip(("inputs", "labels"), data, strict=True)
    )
    for what, tensor in (("inputs", inputs), ("labels", labels)):
        if tensor.dim() == 0:
            raise LoopwrightError(f"task {name}: {what} are a single number; want [N, ...]")
    if len(inputs) != len(labels):
        raise LoopwrightError(f"task {name}: {len(inputs)} inputs and {len(labels)} labels")
    return inputs, labels


def _tensor(where: str, values: Any) -> torch.Tensor:
    """Real numbers, whole numbers or booleans as a tensor on the CPU, detached.

    Raises ``LoopwrightError`` for all else: text, complex and sparse values, lists of different lengths.
    """
    if isinstance(values, torch.Tensor):
        tensor = values
    else:
        try:
            array = np.asarray(values)
        except (TypeError, ValueError, RuntimeError) as problem:  # ragged; or tensors in it that are no arrays
            raise LoopwrightError(f"{where}: no array of numbers: {_say_briefly(problem)}") from problem
        if array.dtype.kind not in "biuf":
            raise LoopwrightError(f"{where}: values are {array.dtype}; want numbers, real or whole, or booleans")
        wide = array.dtype.kind == "f" and array.dtype.itemsize > 8
        tensor = torch.as_tensor(array.astype(np.float64) if wide else array)
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise LoopwrightError(f"{where}: a sparse or quantized tensor; give .to_dense(), or .dequantize()")
    if tensor.is_complex() or tensor.device.type == "meta":
        what = "complex" if tensor.is_complex() else "on the device 'meta', which holds none"
        raise LoopwrightError(f"{where}: values are {what}; want numbers, real or whole, or booleans")
    tensor = tensor.detach().cpu()
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.long()


def _given(name: str, data: Mapping[str, Data]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    if set(data) != set(SPLITS):
        raise LoopwrightError(f"task {name}: splits {sorted(data)}; want {', '.join(SPLITS)}")
    return {split: _tensors(name, data[split]) for split in SPLITS}


def _divided(
    name: str, data: tuple[torch.Tensor, torch.Tensor], fractions: tuple[float, float, float], seed: int
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    try:
        fit = len(fractions) == len(SPLITS) and min(fractions) > 0 and abs(sum(fractions) - 1) <= 1e-6
    except TypeError:
        fit = False
    if not fit:
        raise LoopwrightError(f"task {name}: fractions must be three numbers above 0 that add up to 1, got {fractions}")
    if not isinstance(seed, int) or seed < 0:
        raise LoopwrightError(f"task {name}: seed must be a whole number, 0 or more, got {seed!r}")
    count = len(data[0])
    ends = [round(count * sum(fractions[: i + 1])) for i in range(len(SPLITS))]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    parts = [order[begin:end] for begin, end in zip((0, *ends[:-1]), ends, strict=True)]
    return {split: (data[0][part], data[1][part]) for split, part in zip(SPLITS, parts, strict=True)}


def _description(inputs: torch.Tensor) -> tuple[tuple[int, ...], int | None]:
    """The shape of a sample, and the number of tokens, where inputs are whole numbers."""
    tokens = None if inputs.is_floating_point() or len(inputs) == 0 else int(inputs.max()) + 1
    return tuple(inputs.shape[1:]), tokens


def _find_spec(name: str, model: Model, inputs: torch.Tensor) -> tuple[ModelSpec, tuple[int, ...]]:
    """The model as a spec, and the shape of its outputs for one sample. Whole numbers are tokens if it takes tokens."""
    if isinstance(model, ModelSpec):
        specs = [model]
    else:
        shape, tokens = _description(inputs)
        factory = _factory(model)
        specs = [OwnModel(factory, shape, count) for count in dict.fromkeys((tokens, None))]
    problems: list[Exception] = []
    for spec in specs:
        try:
            return spec, find_output_shape(spec)
        except Exception as problem:  # whatever the user's own forward may raise
            problems.append(problem)
    said = "; taken for numbers instead of tokens: ".join(_say_briefly(problem) for problem in problems)
    hint = "; give samples [N, features], of one feature inputs[:, None]" if inputs.dim() == 1 else ""
    raise LoopwrightError(
        f"task {name}: the model cannot take inputs [{', '.join(['N', *map(str, inputs.shape[1:])])}] of "
        f"{inputs.dtype}: {said}{hint}"
    ) from problems[-1]


def _say_briefly(problem: Exception) -> str:
    """The first line of what somebody else's error says."""
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)


def _convert(name: str, inputs: torch.Tensor, spec: ModelSpec) -> torch.Tensor:
    """In the dtype that the model takes. Raises ``LoopwrightError`` for numbers that would have to be tokens."""
    if inputs.is_floating_point() and not spec.input_dtype.is_floating_point:
        raise LoopwrightError(f"task {name}: inputs are {inputs.dtype}, but the model takes tokens, whole numbers")
    return inputs.to(spec.input_dtype)


def _type_labels(labels: torch.Tensor, loss: LossName, outputs: tuple[int, ...]) -> torch.Tensor:
    """In the dtype a task has; a column where the model has one output. Labels that are no class stay."""
    if loss == "squared-error":
        labels = labels.float()
        return labels[:, None] if labels.dim() == 1 and outputs == (1,) else labels
    return labels if labels.is_floating_point() else labels.long()


def _check_leaks(name: str, splits: Mapping[str, Split]) -> None:
    rows = {key: {row.tobytes(): i for i, row in enumerate(split.inputs.numpy())} for key, split in splits.items()}
    for one, other in combinations(SPLITS, 2):
        shared = rows[one].keys() & rows[other].keys()
        if shared:
            first = next(iter(shared))
            raise LoopwrightError(
                f"task {name}: {len(shared)} inputs are in {one} and in {other} (row {rows[one][first]} and row "
                f"{rows[other][first]}), so that {other} would not measure unseen data; remove repeated samples, split "
                f"by group, or pass allow_repeats=True"
            )


def _check_trainable(task: Task) -> None:
    """Take the gradient of two models at once, as the engine will."""
    model = task.model.build()
    inputs, labels = task.train.inputs[:2], task.train.labels[:2]

    def loss_of(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return compute_losses(task.loss, functional_call(model, parameters, (inputs,)), labels).mean()

    two = {key: torch.stack([value.detach()] * 2) for key, value in model.named_parameters()}
    try:
        vmap(grad(loss_of))(two)
    except Exception as error:  # whatever the user's own forward may raise
        raise LoopwrightError(
            f"task {task.name}: its model cannot be trained in lanes, that is under torch.func.vmap: {error}"
        ) from error
