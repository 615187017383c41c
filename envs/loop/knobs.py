"""Knobs: the dimensions of an action. Each moves one field of the plan by a bounded step from where it stands.

A knob works in an encoding of its field, mostly a logarithm, which is written over an ``arithmetic`` as observations
are. A knob over a field of ``LoopPlan`` is one entry in ``KNOBS``; the action space (``knob_set``), the observation and
the environment's page follow from it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from loopwright.envs.loop.arithmetic import Arithmetic, Number
from loopwright.envs.loop.plan import OPTIMIZERS

Encoding = Callable[[Arithmetic, Number], Number]


@dataclass(frozen=True)
class Knob:
    """One action dimension.

    Attributes:
        name: the knob's name; ``field`` the plan's field that it sets.
        low, high: bounds of the encoded value.
        steps: what each discrete action adds to the encoded value; rising, with a 0. A box action of +-1 adds the
            outermost step.
        encode, decode: field value to encoded value and back.
        about: what it moves, by how much and between which bounds, for people.
        source: where the idea is from.
        whole: whether only whole steps mean anything (the field takes rungs, not a continuum).
        command: whether it stands at ``low`` again before every decision, so that what it sets lasts for one only.
    """

    name: str
    field: str
    low: float
    high: float
    steps: tuple[float, ...]
    encode: Encoding
    decode: Encoding
    about: str
    source: str
    whole: bool = False
    command: bool = False

    @property
    def still(self) -> int:
        """The discrete action that leaves the field alone."""
        return self.steps.index(0.0)


CLIP_OFF = 5.0  # log2 of the threshold from which on clipping is off
DECAY_OFF = -4.0  # log10 of the weight decay up to which there is none
AVERAGES = (0.0, 8.0, 32.0, 128.0, 512.0)  # half-lives in ticks
STEP = (-1.0, 0.0, 1.0)
RATE_STEPS = tuple(math.copysign(math.log(abs(factor)), factor) for factor in (-5.0, -2.0, -1.2, 1.0, 1.2, 2.0, 5.0))


def _take(xp: Arithmetic, value: Number) -> Number:
    return value


def _round(xp: Arithmetic, value: Number) -> Number:
    return xp.rint(value)


def _find_rung(xp: Arithmetic, value: Number) -> Number:
    """The nearest of ``AVERAGES``, by its number."""
    return sum(xp.where(value > (low + high) / 2, 1.0, 0.0) for low, high in pairwise(AVERAGES))


def _climb_to(xp: Arithmetic, rung: Number) -> Number:
    found, nearest = AVERAGES[0], xp.rint(rung)
    for number, average in enumerate(AVERAGES[1:], 1):
        found = xp.where(nearest >= number, average, found)
    return found


KNOBS = {
    knob.name: knob
    for knob in (
        Knob(
            "lr", "learning_rate", float(np.log(1e-6)), float(np.log(1e2)),
            RATE_STEPS,
            lambda xp, v: xp.log(xp.maximum(v, 1e-12)), lambda xp, e: xp.exp(e),
            "learning rate; x 1/5, 1/2, 1/1.2, 1, 1.2, 2, 5; 1e-6 to 100",
            "Daniel et al. 2016; Xu et al. 2019",
        ),
        Knob(
            "momentum", "momentum", 0.0, float(np.log2(100)), STEP,
            lambda xp, v: -xp.log2(1 - v), lambda xp, e: 1 - xp.exp2(-e),
            "1 - momentum (beta1); x 2, 1, 1/2; momentum 0 to 0.99",
            "Smith 2018",
        ),
        Knob(
            "second_momentum", "second_momentum", 1.0, float(np.log2(1000)), (-3.0, -1.0, 0.0, 1.0, 3.0),
            lambda xp, v: -xp.log2(1 - v), lambda xp, e: 1 - xp.exp2(-e),
            "1 - second momentum (beta2); x 8, 2, 1, 1/2, 1/8; second momentum 0.5 to 0.999",
            "Kingma & Ba 2015",
        ),
        Knob(
            "clip", "clip", -5.0, CLIP_OFF, (-2.0, -1.0, 0.0, 1.0, 2.0),
            lambda xp, v: xp.log2(v), lambda xp, e: xp.where(e >= CLIP_OFF, math.inf, xp.exp2(e)),
            "threshold on the gradient norm; x 1/4, 1/2, 1, 2, 4; 1/32 to 16, then off",
            "Pascanu et al. 2013; Seetharaman et al. 2020",
        ),
        Knob(
            "batch", "batch", 0.0, 4.0, STEP,
            lambda xp, v: xp.log2(v), lambda xp, e: xp.exp2(xp.rint(e)),
            "microbatches per update; x 1/2, 1, 2; 1 to 16",
            "McCandlish et al. 2018; Smith et al. 2018", whole=True,
        ),
        Knob(
            "average", "average", 0.0, float(len(AVERAGES) - 1), STEP,
            _find_rung, _climb_to,
            "half-life of the averaged weights that are evaluated; one rung; off, 8, 32, 128, 512 ticks",
            "Polyak & Juditsky 1992", whole=True,
        ),
        Knob(
            "weight_decay", "weight_decay", DECAY_OFF, 0.0, STEP,
            lambda xp, v: xp.log10(xp.maximum(v, 10**DECAY_OFF)), lambda xp, e: xp.where(e <= DECAY_OFF, 0.0, 10.0**e),
            "decoupled weight decay; x 1/10, 1, 10; off, then 1e-3 to 1",
            "Loshchilov & Hutter 2019",
        ),
        Knob(
            "optimizer", "optimizer", 0.0, float(len(OPTIMIZERS) - 1), (-2.0, -1.0, 0.0, 1.0, 2.0),
            _take, _round,
            f"update rule; one or two rungs; {', '.join(OPTIMIZERS)} (from sgd and to it the learning rate follows, so "
            "that the step keeps its length)",
            "Keskar & Socher 2017; Jordan et al. 2024; Scetbon et al. 2025", whole=True,
        ),
        Knob(
            "depth", "depth", 1.0, 4.0, STEP,
            lambda xp, v: 4 * v, lambda xp, e: xp.rint(e) / 4,
            "share of the blocks, from the output, that receive gradient; one rung; 1/4, 1/2, 3/4, 1",
            "FreezeOut, Brock et al. 2017", whole=True,
        ),
        Knob(
            "keep", "keep", -3.0, 0.0, STEP,
            lambda xp, v: xp.log2(v), lambda xp, e: xp.exp2(xp.rint(e)),
            "share of a microbatch that is back-propagated, largest losses first; x 1/2, 1, 2; 1/8 to 1",
            "Selective-Backprop, Jiang et al. 2019", whole=True,
        ),
        Knob(
            "order", "order", 0.0, 2.0, STEP, _take, _round,
            "data order by last seen loss; one rung; easy-first, shuffled, hard-first",
            "Bengio et al. 2009; Loshchilov & Hutter 2016", whole=True,
        ),
        Knob(
            "echo", "echo", 0.0, 3.0, STEP,
            lambda xp, v: xp.log2(v), lambda xp, e: xp.exp2(xp.rint(e)),
            "times a microbatch is used in a row; x 1/2, 1, 2; 1 to 8",
            "data echoing, Choi et al. 2019", whole=True,
        ),
        Knob(
            "sweep", "sweep", 0.0, 2.0, STEP, _take, _round,
            "blocks updated at once; one rung; one a time top-down, jointly, one a time bottom-up",
            "block coordinate descent, Nesterov 2012", whole=True,
        ),
        Knob(
            "rollback", "rollback", 0.0, 1.0, (0.0, 1.0), _take, _round,
            "return to the best snapshot before this decision; no, yes; what was spent since stays charged",
            "restarts from the best iterate", whole=True, command=True,
        ),
    )
}  # fmt: skip


def find_positions(plan: Mapping[str, Number], arithmetic: Arithmetic) -> dict[str, Number]:
    """Where every knob stands under a ``plan``, fields by name: in [-1, 1], by the knob's name."""
    found = {}
    for name, knob in KNOBS.items():
        encoded = knob.encode(arithmetic, plan[knob.field])
        encoded = arithmetic.maximum(arithmetic.minimum(encoded, knob.high), knob.low)
        found[name] = 2 * (encoded - knob.low) / (knob.high - knob.low) - 1
    return found
