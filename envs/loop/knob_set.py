"""KnobSet: the knobs that one environment or policy moves, and what an action does to the plans.

Action 0 of the box kind, or the discrete action whose step is 0, leaves a field alone.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loopwright.envs.loop.arithmetic import Arithmetic, Many, Number, One
from loopwright.envs.loop.averages import Floats, Mask
from loopwright.envs.loop.checks import check_kind, say_briefly, say_value
from loopwright.envs.loop.errors import InvalidActionError, LoopwrightError, UnknownNameError
from loopwright.envs.loop.knobs import KNOBS
from loopwright.envs.loop.plan import SGD, name_rows

KNOB_SETS: dict[str, tuple[str, ...]] = {
    "lr-momentum": ("lr", "momentum"),
    "clip": ("clip",),
    "core": ("lr", "momentum", "second_momentum", "weight_decay", "clip", "batch", "optimizer", "average"),
    "one-rule": ("lr", "momentum", "second_momentum", "weight_decay", "clip", "batch", "average"),
    "loop": ("batch", "average", "optimizer", "depth", "keep", "order", "echo", "sweep", "rollback"),
    "all": tuple(KNOBS),
}
LEAST_MOVE = 1e-3  # in a knob's encoding: less is rounding
ACTION_KINDS = ("discrete", "box", "flat")


class KnobSet:
    """The knobs of one environment: its action space, and what an action does to the plans.

    Args:
        name: one of ``KNOB_SETS``, or knob names joined by ``+``, such as ``"lr+clip"``.
        action: ``"discrete"`` for a MultiDiscrete space, ``"box"`` for a Box in [-1, 1], ``"flat"`` for a Discrete one
            in which one knob moves a decision: action 0 moves none, then come the moves of each knob in turn.

    Raises:
        UnknownNameError: the name or the kind of action is not known.
    """

    def __init__(self, name: str, action: str = "discrete") -> None:
        check_kind("knobs", name, str, "a knob set, or knob names joined by '+'")
        names = KNOB_SETS.get(name, tuple(name.split("+")))
        for knob in names:
            if knob not in KNOBS:
                raise UnknownNameError("knob or knob set", knob, [*KNOB_SETS, *KNOBS])
        if len(set(names)) != len(names):
            raise LoopwrightError(f"a knob is named twice in {name!r}")
        if action not in ACTION_KINDS:
            raise UnknownNameError("kind of action", action, list(ACTION_KINDS))
        self.name, self.action = name, action
        self.knobs = [KNOBS[knob] for knob in names]

    def __reduce__(self) -> tuple[type["KnobSet"], tuple[str, str]]:
        """Its names say it all: the knobs' encodings are functions, which are not pickled."""
        return KnobSet, (self.name, self.action)

    @property
    def rolls_back(self) -> bool:
        """Whether an action can ask for a rollback."""
        return any(knob.field == "rollback" for knob in self.knobs)

    @property
    def choices(self) -> list[int]:
        """How many discrete actions each knob has."""
        return [len(knob.steps) for knob in self.knobs]

    @property
    def outputs(self) -> int:
        """How many numbers a policy gives: one for each choice, or for a box action one for each knob."""
        if self.action == "flat":
            return len(self.flat_moves)
        return sum(self.choices) if self.action == "discrete" else len(self.knobs)

    @cached_property
    def flat_moves(self) -> npt.NDArray[np.int64]:
        """The discrete action of all knobs that each flat one stands for, ``[flat actions, knobs]``."""
        still = [knob.still for knob in self.knobs]
        moves = [still]
        for column, knob in enumerate(self.knobs):
            moves += [[*still[:column], own, *still[column + 1 :]] for own in range(len(knob.steps)) if knob.steps[own]]
        return np.array(moves)

    @cached_property
    def parts(self) -> list[slice]:
        """Where the choices of each knob lie, knob after knob."""
        ends = np.cumsum(self.choices).tolist()
        return [slice(end - own, end) for own, end in zip(self.choices, ends, strict=True)]

    def sample(self, rng: np.random.Generator) -> npt.NDArray[np.generic]:
        """An action ``[knobs]`` drawn uniformly, as ``check`` gives it."""
        if self.action == "box":
            return rng.uniform(-1, 1, len(self.knobs)).astype(np.float32)
        if self.action == "flat":
            drawn: npt.NDArray[np.int64] = self.flat_moves[int(rng.integers(len(self.flat_moves)))]
            return drawn
        return (rng.random(len(self.knobs)) * self.choices).astype(np.int64)

    def check(self, actions: npt.ArrayLike, lanes: int) -> npt.NDArray[np.generic]:
        """The actions of a space as ``[lanes, knobs]``; ``InvalidActionError`` says what is wrong with them.

        A flat action is given as ``[lanes]``, and comes out as the discrete one of all knobs.
        """
        if self.action != "flat":
            return self._check_each(actions, lanes)
        chosen = _check_bounds(_read_array(actions, (lanes,)), 0, len(self.flat_moves) - 1, whole=True)
        moves: npt.NDArray[np.int64] = self.flat_moves[chosen]
        return moves

    def _check_each(self, actions: npt.ArrayLike, lanes: int) -> npt.NDArray[np.generic]:
        """Checks actions with an entry for each knob."""
        array = _read_array(actions, (lanes, len(self.knobs)))
        if self.action == "box":
            # As its space has it: in another precision the same action, read from a ledger, would move a knob otherwise
            return _check_bounds(array, np.full(len(self.knobs), -1), np.full(len(self.knobs), 1)).astype(np.float32)
        return _check_bounds(array, np.zeros(len(self.knobs), int), np.array(self.choices) - 1, whole=True)

    def find_open(self, plans: torch.Tensor, held: Mask) -> Mask:
        """Which choices of each knob, knob after knob, would change anything: ``[lanes, sum of choices]``.

        Those that leave a knob alone do not count as a change but are open. Closed are moves beyond a knob's bounds,
        and those of a knob that is ``held``, ``[lanes, knobs]``. Of a flat action the same for each action there is.
        """
        found, parts = name_rows(plans), []
        for knob, own in zip(self.knobs, held.T, strict=True):
            place = np.clip(knob.encode(Many, found[knob.field].astype(np.float64)), knob.low, knob.high)
            place = np.full_like(place, knob.low) if knob.command else place
            reached = np.clip(place[:, None] + np.array(knob.steps), knob.low, knob.high)
            moves = np.abs(reached - place[:, None]) > LEAST_MOVE
            parts.append(moves & ~own[:, None] | (np.array(knob.steps) == 0))
        if self.action != "flat":
            return np.concatenate(parts, axis=1)
        moves = [part[:, np.array(knob.steps) != 0] for part, knob in zip(parts, self.knobs, strict=True)]
        return np.concatenate([np.ones((plans.shape[1], 1), bool), *moves], axis=1)

    def hold(self, actions: npt.NDArray[np.generic], held: Mask) -> npt.NDArray[np.generic]:
        """The actions ``[lanes, knobs]`` with those replaced that would move a knob that is ``held``, a mask alike."""
        still = np.array([0 if self.action == "box" else knob.still for knob in self.knobs], actions.dtype)
        return np.where(held, still, actions)

    def find_held(self, names: Collection[str]) -> Mask:
        """Which of the knobs are named, ``[knobs]``."""
        return np.array([knob.name in names for knob in self.knobs])

    def apply(
        self, actions: npt.ArrayLike, plans: torch.Tensor, step_ratio: Callable[[], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """The plans ``[fields, lanes]`` after ``actions [lanes, knobs]``, as ``check`` gives them.

        Unmoved fields stay bit-identical. ``step_ratio`` is as in ``move``.
        """
        checked = self._check_each(actions, plans.shape[1])
        steps = np.empty((len(checked), len(self.knobs)), np.float32)
        for column, knob in enumerate(self.knobs):
            own: Any = checked[:, column]
            steps[:, column] = own * knob.steps[-1] if self.action == "box" else np.array(knob.steps)[own]
        return self.move(steps, plans, step_ratio)

    def move(
        self, steps: Floats, plans: torch.Tensor, step_ratio: Callable[[], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """The plans after adding ``steps [lanes, knobs]`` to the encoded values, within the knobs' bounds.

        ``step_ratio()``, how many times as long adamw's step is as sgd's at the same learning rate ``[lanes]``
        (``Lanes.step_ratio``), is asked for when a lane leaves sgd or returns to it, and the learning rate divided or
        multiplied by it: the switch then leaves the length of the step alone (SWATS, Keskar & Socher 2017). Without it
        the learning rate stays. The other optimizers share their learning rate.
        """
        found = name_rows(plans)
        moved = self.move_fields(list(steps.T), found, Many(plans.shape[1]), step_ratio)
        return torch.from_numpy(np.stack(list(moved.values())))

    def move_fields(
        self, steps: Sequence[Number], fields: Mapping[str, Number], arithmetic: Arithmetic,
        step_ratio: Callable[[], torch.Tensor] | None = None,
    ) -> dict[str, Number]:  # fmt: skip
        """``move`` of the fields of plans by name, with a step for each knob."""
        xp, owned = arithmetic, self._fields
        found = xp.evaluate(self._move_owned, [*steps, *(fields[name] for name in owned)])
        moved = {**fields, **dict(zip(owned, found, strict=True))}
        scaled, was_scaled = moved["optimizer"] > SGD, fields["optimizer"] > SGD
        if step_ratio is not None and xp.any(scaled != was_scaled):
            ratio = xp.unpack(step_ratio().numpy()[None])[0]
            rate = xp.where(scaled, xp.divide(moved["learning_rate"], ratio), moved["learning_rate"] * ratio)
            low, high = (KNOBS["lr"].decode(One, bound) for bound in (KNOBS["lr"].low, KNOBS["lr"].high))
            rate = xp.maximum(xp.minimum(rate, high), low)
            moved["learning_rate"] = xp.where(scaled == was_scaled, moved["learning_rate"], rate)
        return moved

    def _move_owned(self, xp: Arithmetic, numbers: Sequence[Number]) -> list[Number]:
        """What becomes of ``_fields``, by the steps of the knobs and then what the fields are."""
        moved = dict(zip(self._fields, numbers[len(self.knobs) :], strict=True))
        for knob, step in zip(self.knobs, numbers[: len(self.knobs)], strict=True):
            if knob.command:
                moved[knob.field] = xp.fill(knob.low)
            if xp.any(step != 0):
                before = moved[knob.field]
                place = xp.maximum(xp.minimum(knob.encode(xp, before), knob.high), knob.low) + step
                after = knob.decode(xp, xp.maximum(xp.minimum(place, knob.high), knob.low))
                moved[knob.field] = xp.where(step == 0, before, after)
        return list(moved.values())

    @cached_property
    def _fields(self) -> list[str]:
        """Those that the knobs move; several may move the same."""
        return list(dict.fromkeys(knob.field for knob in self.knobs))


def _read_array(actions: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    """Actions as an array of finite numbers of this shape, or ``InvalidActionError``."""
    try:
        array = np.asarray(actions)
    except (TypeError, ValueError, RuntimeError) as problem:  # ragged, or a tensor that is not on the CPU
        raise InvalidActionError(f"actions are no array of numbers: {say_briefly(problem)}") from problem
    if array.ndim == 1 and shape == (len(array), 1):  # of one knob, as numbers: so TorchRL gives them
        array = array[:, None]
    if array.shape != shape:
        raise InvalidActionError(f"actions have shape {array.shape}; this space takes {shape}")
    if array.dtype.kind not in "iuf" or not np.all(np.isfinite(array)):
        raise InvalidActionError(f"actions must be finite numbers, got {say_value(array.tolist())}")
    return array


def _check_bounds(array: npt.NDArray[Any], low: Any, high: Any, *, whole: bool = False) -> npt.NDArray[Any]:
    """The actions, of which each entry, or all, lie within bounds; ``InvalidActionError`` names the first that do not.

    With ``whole`` they are whole numbers, and come as int64.
    """
    if whole:
        if not np.issubdtype(array.dtype, np.integer):
            raise InvalidActionError(f"a discrete action holds whole numbers, got {array.dtype}")
        array = array.astype(np.int64)  # torch would take uint8 for a mask, and refuse other unsigned widths
    outside = (array < low) | (array > high)
    lanes = np.flatnonzero(outside.reshape(len(array), -1).any(axis=1))
    if len(lanes):
        lane, (low, high) = int(lanes[0]), (np.asarray(bound).tolist() for bound in (low, high))
        raise InvalidActionError(
            f"action {array[lane].tolist()} of lane {lane} is out of bounds: accepted {low} to {high}"
        )
    return array
