"""What a steered loop can be brought back to: a copy of the weights and of the optimizer's state, or the user's own."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from loopwright.envs.loop.errors import LoopwrightError

SlotFunction = Callable[[int], None]
COUNTED = ("product1", "product2", "gathered")  # what the groups of a PlanOptimizer hold that is state, not a setting


class LoopSnapshot:
    """One stored state of the parameters of an optimizer, of what it remembers of them, and of a model's buffers.

    Copies go into the same memory each time. ``learning_rate`` and the like are not part of it.
    """

    def __init__(self, optimizer: Optimizer, buffers: Sequence[torch.Tensor] = ()) -> None:
        self._optimizer, self._buffers = optimizer, list(buffers)
        self._weights: list[torch.Tensor] = []
        self._state: list[dict[str, Any]] = []
        self._counted: list[dict[str, Any]] = []

    @property
    def _parameters(self) -> list[torch.Tensor]:
        return self._buffers + [p for group in self._optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def save(self, chosen: bool) -> None:
        """Store the present state, if ``chosen``."""
        if not chosen:
            return
        parameters = self._parameters
        if [p.shape for p in parameters] != [w.shape for w in self._weights]:
            self._weights, self._state = [torch.empty_like(p) for p in parameters], [{} for _ in parameters]
        for weight, kept, p in zip(self._weights, self._state, parameters, strict=True):
            weight.copy_(p)
            _copy_state(self._optimizer.state.get(p, {}), kept)
        groups = self._optimizer.param_groups
        self._counted = [{name: group[name] for name in COUNTED if name in group} for group in groups]

    @torch.no_grad()
    def restore(self, chosen: bool) -> None:
        """Go back to what was stored, if ``chosen``. Parameters that came later stay as they are."""
        if not chosen or not self._weights:
            return
        for weight, kept, p in zip(self._weights, self._state, self._parameters, strict=False):
            p.copy_(weight)
            if kept or p in self._optimizer.state:
                _copy_state(kept, self._optimizer.state[p])
        for group, counted in zip(self._optimizer.param_groups, self._counted, strict=False):
            group.update(counted)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._weights, "state": self._state, "counted": self._counted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._weights, self._state = list(state["weights"]), list(state["state"])
        self._counted = list(state["counted"])


def _copy_state(source: dict[str, Any], target: dict[str, Any]) -> None:
    """Make ``target`` what ``source`` is, within the memory of the tensors it has."""
    for name in set(target) - set(source):
        del target[name]
    _copy_values(source, target)


def _copy_values(source: dict[str, Any], target: dict[str, Any]) -> None:
    """Give ``target`` what is in ``source``, within the memory of the tensors it has."""
    for name, value in source.items():
        if isinstance(value, torch.Tensor) and isinstance(target.get(name), torch.Tensor):
            target[name].copy_(value)
        else:
            target[name] = value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)


class OwnSettings:
    """What a user has set the groups of an optimizer to, to be given back; a learning rate may be a tensor."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.groups = [
            {name: copy.deepcopy(value) for name, value in group.items() if name not in ("params", *COUNTED)}
            for group in optimizer.param_groups
        ]

    @torch.no_grad()
    def give_back(self, optimizer: Optimizer) -> None:
        """Set them again. Groups that came later stay as they are."""
        for group, own in zip(optimizer.param_groups, self.groups, strict=False):
            _copy_values(own, group)


class OwnSnapshot:
    """One stored state that the user's functions ``save`` and ``restore``, as number ``slot``.

    Raises ``LoopwrightError`` where they fail.
    """

    def __init__(self, functions: tuple[SlotFunction, SlotFunction], slot: int) -> None:
        self._functions, self._slot = functions, slot

    def _call(self, which: int) -> None:
        try:
            self._functions[which](self._slot)
        except Exception as problem:
            verb = ("saved", "restored")[which]
            raise LoopwrightError(f"the snapshot in slot {self._slot} could not be {verb}: {problem}") from problem

    def save(self, chosen: bool) -> None:
        """Store the present state, if ``chosen``."""
        if chosen:
            self._call(0)

    def restore(self, chosen: bool) -> None:
        """Go back to what was stored, if ``chosen``."""
        if chosen:
            self._call(1)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What was stored is the user's, and lies where they have put it."""


Slots = tuple[LoopSnapshot | OwnSnapshot, LoopSnapshot | OwnSnapshot]


def make_slots(
    optimizer: Optimizer, model: nn.Module | None, functions: tuple[SlotFunction, SlotFunction] | None
) -> Slots:
    """Room for two states of a loop: of what ``optimizer`` updates and ``model`` buffers, or the user's own."""
    if functions is None:
        buffers = [] if model is None else list(model.buffers())
        return LoopSnapshot(optimizer, buffers), LoopSnapshot(optimizer, buffers)
    return OwnSnapshot(functions, 0), OwnSnapshot(functions, 1)
