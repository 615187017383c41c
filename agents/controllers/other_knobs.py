"""The same policy for other knobs: those that it has it moves as before, the others it leaves alone."""

import math
from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn

from loopwright.agents.controllers.policy import Policy
from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.envs.loop.knob_set import KnobSet

CERTAIN = 120.0  # a logit beside which the others, at 0, have no chance in single precision


def find_logit(choices: int, chance: float) -> float:
    """The logit with which one of so many choices, the others at 0, is taken with this ``chance``."""
    return CERTAIN if chance == 1 else math.log(chance / (1 - chance) * (choices - 1))


def change_knobs(policy: Policy, knobs: KnobSet, standing_still: float, raised: Collection[str] = ()) -> Policy:
    """A policy that moves ``knobs``: those that it has as before.

    The others it leaves alone with the chance ``standing_still``, whatever it sees; but the ``raised`` it moves by
    their largest step at every decision, so to their upper bound.

    Raises ``LoopwrightError`` for other actions than discrete ones, where no knob is the same, and for a knob in
    ``raised`` that it moves itself or that is none of ``knobs``.
    """
    if policy.lstm is not None:
        raise LoopwrightError("a policy with an LSTM cannot be given other knobs")
    if policy.knobs.action != "discrete" or knobs.action != "discrete":
        raise LoopwrightError(
            f"only a policy of discrete actions can be given other knobs; it has {policy.knobs.action}, wanted is "
            f"{knobs.action}"
        )
    known = {knob.name: part for knob, part in zip(policy.knobs.knobs, policy.knobs.parts, strict=True)}
    if not known.keys() & {knob.name for knob in knobs.knobs}:
        raise LoopwrightError(f"a policy of {policy.knobs.name} knows none of the knobs {knobs.name}")
    lacking = [knob.name for knob in knobs.knobs if knob.name not in known]
    for name in raised:
        if name not in lacking:
            raise UnknownNameError("knob to be raised", name, lacking)
    *layers, last = policy.network
    assert isinstance(last, nn.Linear)
    weights, biases = [], []
    for knob in knobs.knobs:
        if knob.name in known:
            weights.append(last.weight[known[knob.name]])
            biases.append(last.bias[known[knob.name]])
        else:
            weights.append(torch.zeros(len(knob.steps), last.in_features))
            biases.append(torch.zeros(len(knob.steps)))
            taken, chance = (-1, 1.0) if knob.name in raised else (knob.still, standing_still)
            biases[-1][taken] = find_logit(len(knob.steps), chance)
    head = nn.Linear(last.in_features, knobs.outputs)
    head.load_state_dict({"weight": torch.cat(weights).detach(), "bias": torch.cat(biases).detach()})
    return replace(policy, knobs=knobs, network=nn.Sequential(*layers, head))
