"""Knobs: the dimensions of an action. Each moves one field of the plan by a bounded step from where it stands.

A knob works in an encoding of its field, mostly a logarithm. Action 0 of the box space, or the middle of the discrete
steps, leaves the field alone. To add a knob: add its field to ``LoopPlan``, let ``tick.py`` and ``reference.py`` obey
it, and add one entry to ``KNOBS``; the observation then shows where it stands by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

from loopwright.envs.plan import ROW
from loopwright.inner_tasks.errors import InvalidActionError, LoopwrightError, UnknownNameError

Encoding = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Knob:
    """One action dimension.

    Attributes:
        name: the knob's name; ``field`` the plan's field that it sets.
        low, high: bounds of the encoded value.
        steps: what each discrete action adds to the encoded value; rising, 0 in the middle. A box action of +-1 adds
            the outermost step.
        encode, decode: field value to encoded value and back.
        source: where the idea is from.
        whole: whether only whole steps mean anything (the field takes rungs, not a continuum).
    """

    name: str
    field: str
    low: float
    high: float
    steps: tuple[float, ...]
    encode: Encoding
    decode: Encoding
    source: str
    whole: bool = False

    def position(self, plans: torch.Tensor) -> torch.Tensor:
        """Where the knob stands, ``[lanes]`` in [-1, 1]."""
        encoded = self.encode(plans[ROW[self.field]]).clamp(self.low, self.high)
        return 2 * (encoded - self.low) / (self.high - self.low) - 1


CLIP_OFF = 5.0  # log2 of the threshold from which on clipping is off
AVERAGES = torch.tensor([0.0, 32.0, 128.0])  # half-lives in ticks: off, short, long

KNOBS = {
    knob.name: knob
    for knob in (
        Knob(
            "lr", "learning_rate", float(np.log(1e-6)), float(np.log(1e2)),
            (-1.0, -float(np.log(1.4)), 0.0, float(np.log(1.4)), 1.0),
            lambda v: v.clamp(min=1e-12).log(), torch.exp,
            "Daniel et al. 2016; Xu et al. 2019",
        ),
        Knob(
            "momentum", "momentum", 0.0, float(np.log2(100)), (-1.0, 0.0, 1.0),
            lambda v: -torch.log2(1 - v), lambda e: 1 - torch.exp2(-e),
            "Smith 2018",
        ),
        Knob(
            "clip", "clip", -5.0, CLIP_OFF, (-2.0, -1.0, 0.0, 1.0, 2.0),
            torch.log2, lambda e: torch.where(e >= CLIP_OFF, torch.inf, torch.exp2(e)),
            "Pascanu et al. 2013; Seetharaman et al. 2020",
        ),
        Knob(
            "batch", "batch", 0.0, 4.0, (-1.0, 0.0, 1.0),
            torch.log2, lambda e: torch.exp2(e.round()),
            "McCandlish et al. 2018; Smith et al. 2018", whole=True,
        ),
        Knob(
            "average", "average", 0.0, 2.0, (-1.0, 0.0, 1.0),
            lambda v: (v[:, None] > (AVERAGES[1:] + AVERAGES[:-1]) / 2).float().sum(1),
            lambda e: AVERAGES[e.round().long()],
            "Polyak & Juditsky 1992", whole=True,
        ),
    )
}  # fmt: skip

KNOB_SETS: dict[str, tuple[str, ...]] = {
    "lr-momentum": ("lr", "momentum"),
    "clip": ("clip",),
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
    def space(self) -> gym.Space[npt.NDArray[np.generic]]:
        if self.action == "box":
            return gym.spaces.Box(-1.0, 1.0, (len(self.knobs),), np.float32)
        return gym.spaces.MultiDiscrete([len(knob.steps) for knob in self.knobs])

    def check(self, actions: npt.ArrayLike, lanes: int) -> npt.NDArray[np.generic]:
        """The actions as ``[lanes, knobs]``, or ``InvalidActionError`` saying what is wrong with them."""
        array = np.asarray(actions)
        if array.shape != (lanes, len(self.knobs)):
            raise InvalidActionError(f"actions have shape {array.shape}; this space takes {(lanes, len(self.knobs))}")
        if not np.issubdtype(array.dtype, np.number) or not np.all(np.isfinite(array)):
            raise InvalidActionError(f"actions must be finite numbers, got {array.tolist()}")
        if self.action == "box":
            low, high = np.full(len(self.knobs), -1), np.full(len(self.knobs), 1)
        else:
            low, high = np.zeros(len(self.knobs), int), np.array([len(knob.steps) - 1 for knob in self.knobs])
            if not np.issubdtype(array.dtype, np.integer):
                raise InvalidActionError(f"a MultiDiscrete action holds whole numbers, got {array.dtype}")
        outside = np.flatnonzero(((array < low) | (array > high)).any(axis=1))
        if len(outside):
            lane = int(outside[0])
            raise InvalidActionError(
                f"action {array[lane].tolist()} of lane {lane} is out of bounds: "
                f"accepted {low.tolist()} to {high.tolist()}"
            )
        return array

    def apply(self, actions: npt.ArrayLike, plans: torch.Tensor) -> torch.Tensor:
        """The plans ``[fields, lanes]`` after ``actions [lanes, knobs]``. Unmoved fields stay bit-identical."""
        checked = torch.from_numpy(np.ascontiguousarray(self.check(actions, plans.shape[1])))
        steps = [
            checked[:, column] * knob.steps[-1]
            if self.action == "box"
            else torch.tensor(knob.steps)[checked[:, column]]
            for column, knob in enumerate(self.knobs)
        ]
        return self.move(torch.stack(steps, dim=1), plans)

    def move(self, steps: torch.Tensor, plans: torch.Tensor) -> torch.Tensor:
        """The plans after adding ``steps [lanes, knobs]`` to the encoded values, within the knobs' bounds."""
        moved = plans.clone()
        for step, knob in zip(steps.T, self.knobs, strict=True):
            before = plans[ROW[knob.field]]
            after = knob.decode((knob.encode(before).clamp(knob.low, knob.high) + step).clamp(knob.low, knob.high))
            moved[ROW[knob.field]] = torch.where(step == 0, before, after.to(before.dtype))
        return moved
