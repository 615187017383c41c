"""Checkpoints: what a training has come to, as one safetensors file. Reading one never executes code.

Stable-Baselines3's own files hold pickles, which run whatever their writer liked. Here the model is made anew of the
configuration, and the file has what it has learnt since: weights, the states of optimizers, and counters. All of it is
held against that model before it is taken over. What is not kept are the runs in progress and a replay buffer.
"""

import copy
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer
from typing_extensions import TypedDict

from loopwright.agents.controllers.carded import CardedFile, TensorLayout, require_layout
from loopwright.envs.loop.errors import CheckpointError
from loopwright.envs.loop.untrusted import Count, Digest, Name, demand, strict

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_FORMAT = "loopwright-checkpoint-1"
CHECKPOINT_LIMIT = 4 << 30  # bytes
_COUNTERS = {"decisions": "num_timesteps", "updates": "_n_updates", "episodes": "_episode_num"}  # card and model


@strict
class _OptimizerCard(TypedDict):
    """Of an optimizer what is no tensor: the rate of each group, and the numbers of the state of each parameter."""

    rates: list[Annotated[float, Field(ge=0)]]
    numbers: dict[Name, dict[Name, int]]


@strict
class _Card(TypedDict):
    """What a checkpoint says of itself."""

    format: str
    algorithm: Name
    decisions: Count
    updates: Count
    episodes: Count
    optimizers: dict[Name, _OptimizerCard]
    sha256: Digest


_FILE = CardedFile[_Card]("checkpoint", _Card, CHECKPOINT_LIMIT, CheckpointError)


def write_checkpoint(model: Any, path: Path) -> None:
    """Keep a Stable-Baselines3 model as it is now. Raises ``LoopwrightError`` where it cannot be written."""
    tensors: dict[str, torch.Tensor] = {}
    cards: dict[str, Any] = {}
    for name, part in _list_parts(model):
        if isinstance(part, Optimizer):
            entries = part.state_dict()["state"]
            tensors |= {f"{name}/{i}/{key}": v for i, key, v in _walk(entries) if isinstance(v, torch.Tensor)}
            numbers: dict[str, dict[str, int]] = {}
            for i, key, value in _walk(entries):
                if not isinstance(value, torch.Tensor):
                    numbers.setdefault(str(i), {})[key] = value
            cards[name] = {"rates": [float(group["lr"]) for group in part.param_groups], "numbers": numbers}
        else:
            tensors |= {f"{name}/{key}": value for key, value in _get_values(part).items()}
    counters = {entry: int(getattr(model, attribute, 0)) for entry, attribute in _COUNTERS.items()}
    card = {"format": CHECKPOINT_FORMAT, "algorithm": type(model).__name__, **counters, "optimizers": cards}
    # Copies: optimizers and modules may share memory, which safetensors refuses.
    _FILE.write(path, card, {name: value.detach().clone().contiguous() for name, value in tensors.items()})


def restore_checkpoint(model: Any, path: Path) -> None:
    """Bring a model, made of the same configuration, to where the one at ``path`` was.

    Raises ``CheckpointError`` for a file that is damaged, altered, or belongs to a model of another make.
    """
    parts = dict(_list_parts(model))
    rehearsed = {name: _rehearse(part) for name, part in parts.items() if isinstance(part, Optimizer)}

    def check(card: _Card, layout: TensorLayout) -> None:
        wanted, kind = CHECKPOINT_FORMAT, type(model).__name__
        demand(card["format"] == wanted, f"format {card['format']!r}; this version reads {wanted!r}")
        demand(card["algorithm"] == kind, f"it is one of {card['algorithm']}, not of {kind}")
        demand(set(card["optimizers"]) == set(rehearsed), f"optimizers must be {', '.join(rehearsed)}")
        expected: TensorLayout = {}
        for name, part in parts.items():
            if isinstance(part, Optimizer):
                expected |= _expect_state(name, part, rehearsed[name], card["optimizers"][name], layout)
            else:
                expected |= {f"{name}/{key}": (v.dtype, tuple(v.shape)) for key, v in _get_values(part).items()}
        require_layout(layout, expected)

    card, tensors = _FILE.read(path, check)
    for name, part in parts.items():
        own = {key.removeprefix(f"{name}/"): v for key, v in tensors.items() if key.startswith(f"{name}/")}
        if isinstance(part, Optimizer):
            _restore_optimizer(part, card["optimizers"][name], own)
        elif isinstance(part, nn.Module):
            part.load_state_dict(own)
        else:
            part.data = own[""]
    for entry, attribute in _COUNTERS.items():
        if hasattr(model, attribute):
            setattr(model, attribute, card[entry])  # type: ignore[literal-required]
    if hasattr(model, "weights"):  # of ARS: what it moves, beside the policy that it tries out
        model.weights = nn.utils.parameters_to_vector(model.policy.parameters()).detach()


def _list_parts(model: Any) -> Iterator[tuple[str, Any]]:
    """The modules, optimizers and single tensors of which a model's learning consists, by name."""
    names, variables = model._get_torch_save_params()
    for name in (*names, *variables):
        part = attrgetter(name)(model)
        if part is not None:
            yield name, part


def _get_values(part: Any) -> dict[str, torch.Tensor]:
    """The tensors of a module by name; a single tensor is its own, without a name."""
    values: dict[str, torch.Tensor] = part.state_dict() if isinstance(part, nn.Module) else {"": part}
    return values


def _walk(entries: dict[int, dict[str, Any]]) -> Iterator[tuple[int, str, Any]]:
    for position, state in entries.items():
        for key, value in state.items():
            yield position, key, value


def _rehearse(optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """What an optimizer keeps for each of its parameters once it has made a step."""
    twin = copy.deepcopy(optimizer)
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    twin.step()
    state: dict[int, dict[str, Any]] = twin.state_dict()["state"]
    return state


def _expect_state(
    name: str, optimizer: Optimizer, rehearsed: dict[int, dict[str, Any]], card: _OptimizerCard, layout: TensorLayout
) -> TensorLayout:
    """How an optimizer's state has to be laid out: for each parameter as rehearsed, or, before its first step, not."""
    demand(len(card["rates"]) == len(optimizer.param_groups), f"{name} has {len(optimizer.param_groups)} groups")
    expected: TensorLayout = {}
    numbers: dict[str, set[str]] = {}
    begun = {key.removeprefix(f"{name}/").partition("/")[0] for key in layout if key.startswith(f"{name}/")}
    for position, state in rehearsed.items():
        if str(position) in begun:
            own = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
            expected |= {f"{name}/{position}/{key}": (v.dtype, tuple(v.shape)) for key, v in own.items()}
            if len(own) < len(state):
                numbers[str(position)] = set(state) - set(own)
    found = {position: set(own) for position, own in card["numbers"].items()}
    demand(found == numbers, f"{name} must have the numbers {numbers}")
    return expected


def _restore_optimizer(optimizer: Optimizer, card: _OptimizerCard, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        position, _, entry = key.partition("/")
        state.setdefault(int(position), {})[entry] = value
    for position, numbers in card["numbers"].items():
        state[int(position)] |= numbers
    groups = optimizer.state_dict()["param_groups"]
    for group, rate in zip(groups, card["rates"], strict=True):
        group["lr"] = rate
    optimizer.load_state_dict({"state": state, "param_groups": groups})
