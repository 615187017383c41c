"""Knobs: the dimensions of an action. Each moves one field of the plan by a bounded step from where it stands.

A knob works in an encoding of its field, mostly a logarithm. A knob over a field of ``LoopPlan`` is one entry in
``KNOBS``; the action space (``knob_set``), the observation and the environment's page follow from it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from loopwright.envs.loop.plan import OPTIMIZERS, ROW

Encoding = Callable[[torch.Tensor], torch.Tensor]


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

    def position(self, plans: torch.Tensor) -> torch.Tensor:
        """Where the knob stands, ``[lanes]`` in [-1, 1]."""
        encoded = self.encode(plans[ROW[self.field]]).clamp(self.low, self.high)
        return 2 * (encoded - self.low) / (self.high - self.low) - 1


CLIP_OFF = 5.0  # log2 of the threshold from which on clipping is off
DECAY_OFF = -4.0  # log10 of the weight decay up to which there is none
AVERAGES = torch.tensor([0.0, 8.0, 32.0, 128.0, 512.0])  # half-lives in ticks
STEP = (-1.0, 0.0, 1.0)
RATE_STEPS = tuple(math.copysign(math.log(abs(factor)), factor) for factor in (-5.0, -2.0, -1.2, 1.0, 1.2, 2.0, 5.0))


def _itself(value: torch.Tensor) -> torch.Tensor:
    return value


KNOBS = {
    knob.name: knob
    for knob in (
        Knob(
            "lr", "learning_rate", float(np.log(1e-6)), float(np.log(1e2)),
            RATE_STEPS,
            lambda v: v.clamp(min=1e-12).log(), torch.exp,
            "learning rate; x 1/5, 1/2, 1/1.2, 1, 1.2, 2, 5; 1e-6 to 100",
            "Daniel et al. 2016; Xu et al. 2019",
        ),
        Knob(
            "momentum", "momentum", 0.0, float(np.log2(100)), STEP,
            lambda v: -torch.log2(1 - v), lambda e: 1 - torch.exp2(-e),
            "1 - momentum (beta1); x 2, 1, 1/2; momentum 0 to 0.99",
            "Smith 2018",
        ),
        Knob(
            "second_momentum", "second_momentum", 1.0, float(np.log2(1000)), (-3.0, -1.0, 0.0, 1.0, 3.0),
            lambda v: -torch.log2(1 - v), lambda e: 1 - torch.exp2(-e),
            "1 - second momentum (beta2); x 8, 2, 1, 1/2, 1/8; second momentum 0.5 to 0.999",
            "Kingma & Ba 2015",
        ),
        Knob(
            "clip", "clip", -5.0, CLIP_OFF, (-2.0, -1.0, 0.0, 1.0, 2.0),
            torch.log2, lambda e: torch.where(e >= CLIP_OFF, torch.inf, torch.exp2(e)),
            "threshold on the gradient norm; x 1/4, 1/2, 1, 2, 4; 1/32 to 16, then off",
            "Pascanu et al. 2013; Seetharaman et al. 2020",
        ),
        Knob(
            "batch", "batch", 0.0, 4.0, STEP,
            torch.log2, lambda e: torch.exp2(e.round()),
            "microbatches per update; x 1/2, 1, 2; 1 to 16",
            "McCandlish et al. 2018; Smith et al. 2018", whole=True,
        ),
        Knob(
            "average", "average", 0.0, float(len(AVERAGES) - 1), STEP,
            lambda v: (v[:, None] > (AVERAGES[1:] + AVERAGES[:-1]) / 2).float().sum(1),
            lambda e: AVERAGES[e.round().long()],
            "half-life of the averaged weights that are evaluated; one rung; off, 8, 32, 128, 512 ticks",
            "Polyak & Juditsky 1992", whole=True,
        ),
        Knob(
            "weight_decay", "weight_decay", DECAY_OFF, 0.0, STEP,
            lambda v: v.clamp(min=10**DECAY_OFF).log10(), lambda e: torch.where(e <= DECAY_OFF, 0.0, 10.0**e),
            "decoupled weight decay; x 1/10, 1, 10; off, then 1e-3 to 1",
            "Loshchilov & Hutter 2019",
        ),
        Knob(
            "optimizer", "optimizer", 0.0, float(len(OPTIMIZERS) - 1), (-2.0, -1.0, 0.0, 1.0, 2.0),
            _itself, torch.round,
            f"update rule; one or two rungs; {', '.join(OPTIMIZERS)} (from sgd and to it the learning rate follows, so "
            "that the step keeps its length)",
            "Keskar & Socher 2017; Jordan et al. 2024; Scetbon et al. 2025", whole=True,
        ),
        Knob(
            "depth", "depth", 1.0, 4.0, STEP,
            lambda v: 4 * v, lambda e: e.round() / 4,
            "share of the blocks, from the output, that receive gradient; one rung; 1/4, 1/2, 3/4, 1",
            "FreezeOut, Brock et al. 2017", whole=True,
        ),
        Knob(
            "keep", "keep", -3.0, 0.0, STEP,
            torch.log2, lambda e: torch.exp2(e.round()),
            "share of a microbatch that is back-propagated, largest losses first; x 1/2, 1, 2; 1/8 to 1",
            "Selective-Backprop, Jiang et al. 2019", whole=True,
        ),
        Knob(
            "order", "order", 0.0, 2.0, STEP, _itself, torch.round,
            "data order by last seen loss; one rung; easy-first, shuffled, hard-first",
            "Bengio et al. 2009; Loshchilov & Hutter 2016", whole=True,
        ),
        Knob(
            "echo", "echo", 0.0, 3.0, STEP,
            torch.log2, lambda e: torch.exp2(e.round()),
            "times a microbatch is used in a row; x 1/2, 1, 2; 1 to 8",
            "data echoing, Choi et al. 2019", whole=True,
        ),
        Knob(
            "sweep", "sweep", 0.0, 2.0, STEP, _itself, torch.round,
            "blocks updated at once; one rung; one a time top-down, jointly, one a time bottom-up",
            "block coordinate descent, Nesterov 2012", whole=True,
        ),
        Knob(
            "rollback", "rollback", 0.0, 1.0, (0.0, 1.0), _itself, torch.round,
            "return to the best snapshot before this decision; no, yes; what was spent since stays charged",
            "restarts from the best iterate", whole=True, command=True,
        ),
    )
}  # fmt: skip
