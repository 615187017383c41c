"""A training that begins with what a saved policy knows, be it of other knobs.

The critic is new, and advantages by a critic that knows nothing would unteach the policy: it learns alone at first.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from loopwright.agents.controllers.policy import ACTIVATIONS, Policy
from loopwright.agents.training.extraction import insert_policy
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet

CRITIC_ALONE = 8  # rollouts
NEW_STANDING_STILL = 0.97  # chance with which a knob that the policy lacks is left alone, at first


def find_still_logit(choices: int, chance: float) -> float:
    """The logit with which one of so many choices, the others at 0, is taken with this ``chance``."""
    return math.log(chance / (1 - chance) * (choices - 1))


def shape_as(policy: Policy) -> dict[str, Any]:
    """Options of an algorithm whose actor is to have the network of a ``policy``."""
    card = policy.describe()
    layers = {"pi": card["widths"][1:-1], "vf": [128, 128]}
    return {"policy_kwargs": {"net_arch": layers, "activation_fn": ACTIVATIONS[card["activation"]]}}


def start_from(model: BaseAlgorithm, policy: Policy, knobs: KnobSet) -> None:
    """Give a model that steers ``knobs`` the network of a ``policy``. Raises ``LoopwrightError`` where it cannot be."""
    insert_policy(model, change_knobs(policy, knobs))


def change_knobs(policy: Policy, knobs: KnobSet) -> Policy:
    """The same policy for other knobs: those that it has it moves as before, the others it mostly leaves alone.

    Raises ``LoopwrightError`` for other actions than discrete ones, and where no knob is the same.
    """
    if policy.lstm is not None:
        raise LoopwrightError("a policy with an LSTM cannot be begun with")
    if policy.knobs.action != "discrete" or knobs.action != "discrete":
        raise LoopwrightError(
            f"only a policy of discrete actions can be given other knobs; it has {policy.knobs.action}, wanted is "
            f"{knobs.action}"
        )
    known = {knob.name: part for knob, part in zip(policy.knobs.knobs, policy.knobs.parts, strict=True)}
    if not known.keys() & {knob.name for knob in knobs.knobs}:
        raise LoopwrightError(f"a policy of {policy.knobs.name} knows none of the knobs {knobs.name}")
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
            biases[-1][knob.still] = find_still_logit(len(knob.steps), NEW_STANDING_STILL)
    head = nn.Linear(last.in_features, knobs.outputs)
    head.load_state_dict({"weight": torch.cat(weights).detach(), "bias": torch.cat(biases).detach()})
    return replace(policy, knobs=knobs, network=nn.Sequential(*layers, head))


def let_learn(model: Any, actor: bool) -> None:
    """Let the actor of an on-policy model learn with its critic, or not."""
    for part in (model.policy.mlp_extractor.policy_net, model.policy.action_net):
        part.requires_grad_(actor)
