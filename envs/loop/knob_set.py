"""KnobSet: the knobs that one environment or policy moves, and what an action does to the plans.

Action 0 of the box kind, or the discrete action whose step is 0, leaves a field alone.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loopwright.envs.loop.arithmetic import Arithmetic, Many, Number
from loopwright.envs.loop.averages import Mask
from loopwright.envs.loop.checks import check_kind, say_briefly, say_value
from loopwright.envs.loop.errors import InvalidActionError, LoopwrightError, UnknownNameError
from loopwright.envs.loop.knobs import KNOBS, Row
from loopwright.envs.loop.plan import SGD, name_rows

KNOB_SETS: dict[str, tuple[str, ...]] = {
    "lr-momentum": ("lr", "momentum"),
    "clip": ("clip",),
    "core": ("lr", "momentum", "second_momentum", "weight_decay", "clip", "batch", "optimizer", "average"),
    "loop": ("batch", "average", "optimizer", "depth", "keep", "order", "echo", "sweep", "rollback"),
    "all": tuple(KNOBS),
}


class KnobSet:
    """The knobs of one environment: its action space, and what an action does to the plans.

    Args:
        name: one of ``KNOB_SETS``, or knob names joined by ``+``, such as ``"lr+clip"``.
        action: ``"discrete"`` for a MultiDiscrete space, ``"box"`` for a Box in [-1, 1].

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
        if action not in ("discrete", "box"):
            raise UnknownNameError("kind of action", action, ["discrete", "box"])
        self.name, self.action = name, action
        self.knobs = [KNOBS[knob] for knob in names]

    @property
    def rolls_back(self) -> bool:
        """Whether an action can ask for a rollback."""
        return any(knob.field == "rollback" for knob in self.knobs)

    @property
    def choices(self) -> list[int]:
        """How many discrete actions each knob has."""
        return [len(knob.steps) for knob in self.knobs]

    def sample(self, rng: np.random.Generator) -> npt.NDArray[np.generic]:
        """An action ``[knobs]`` drawn uniformly."""
        if self.action == "box":
            return rng.uniform(-1, 1, len(self.knobs)).astype(np.float32)
        return (rng.random(len(self.knobs)) * self.choices).astype(np.int64)

    def check(self, actions: npt.ArrayLike, lanes: int) -> npt.NDArray[np.generic]:
        """The actions as ``[lanes, knobs]``, or ``InvalidActionError`` saying what is wrong with them."""
        try:
            array = np.asarray(actions)
        except (TypeError, ValueError, RuntimeError) as problem:  # ragged, or a tensor that is not on the CPU
            raise InvalidActionError(f"actions are no array of numbers: {say_briefly(problem)}") from problem
        if array.shape != (lanes, len(self.knobs)):
            raise InvalidActionError(f"actions have shape {array.shape}; this space takes {(lanes, len(self.knobs))}")
        if array.dtype.kind not in "iuf" or not np.all(np.isfinite(array)):
            raise InvalidActionError(f"actions must be finite numbers, got {say_value(array.tolist())}")
        if self.action == "box":
            low, high = np.full(len(self.knobs), -1), np.full(len(self.knobs), 1)
        else:
            low, high = np.zeros(len(self.knobs), int), np.array(self.choices) - 1
            if not np.issubdtype(array.dtype, np.integer):
                raise InvalidActionError(f"a MultiDiscrete action holds whole numbers, got {array.dtype}")
            array = array.astype(np.int64)  # torch would take uint8 for a mask, and refuse other unsigned widths
        outside = np.flatnonzero(((array < low) | (array > high)).any(axis=1))
        if len(outside):
            lane = int(outside[0])
            raise InvalidActionError(
                f"action {array[lane].tolist()} of lane {lane} is out of bounds: "
                f"accepted {low.tolist()} to {high.tolist()}"
            )
        # As its space has it: in another precision the same action, read from a ledger, would move a knob otherwise.
        return array.astype(np.float32) if self.action == "box" else array

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
        """The plans ``[fields, lanes]`` after ``actions [lanes, knobs]``. Unmoved fields stay bit-identical.

        ``step_ratio`` is as in ``move``.
        """
        checked = self.check(actions, plans.shape[1])
        steps = np.empty((len(checked), len(self.knobs)), np.float32)
        for column, knob in enumerate(self.knobs):
            own: Any = checked[:, column]
            steps[:, column] = own * knob.steps[-1] if self.action == "box" else np.array(knob.steps)[own]
        return self.move(steps, plans, step_ratio)

    def move(
        self, steps: Row, plans: torch.Tensor, step_ratio: Callable[[], torch.Tensor] | None = None
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
        xp, moved = arithmetic, dict(fields)
        for step, knob in zip(steps, self.knobs, strict=True):
            if knob.command:
                moved[knob.field] = xp.fill(knob.low)
            if xp.any(step != 0):
                before = moved[knob.field]
                place = xp.maximum(xp.minimum(xp.number(knob.encode(before)), knob.high), knob.low) + step
                after = xp.number(knob.decode(xp.maximum(xp.minimum(place, knob.high), knob.low)))
                moved[knob.field] = xp.where(step == 0, before, after)
        scaled, was_scaled = moved["optimizer"] > SGD, fields["optimizer"] > SGD
        if step_ratio is not None and xp.any(scaled != was_scaled):
            ratio = xp.unpack(step_ratio().numpy()[None])[0]
            rate = xp.where(scaled, xp.divide(moved["learning_rate"], ratio), moved["learning_rate"] * ratio)
            low, high = (float(KNOBS["lr"].decode(np.array(bound))) for bound in (KNOBS["lr"].low, KNOBS["lr"].high))
            rate = xp.maximum(xp.minimum(rate, high), low)
            moved["learning_rate"] = xp.where(scaled == was_scaled, moved["learning_rate"], rate)
        return moved
