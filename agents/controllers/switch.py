"""Two policies as one: the first acts where a feature lies below a threshold, the second elsewhere.

What pays depends on what an update costs: where a matrix-aware one is free, another policy does best than where it
costs many gradients. A switch asks one feature of the observation, such as ``price_muon``, and lets the expert for it
act. It is one network of tanh layers, an ordinary bundle: a unit that saturates at -1 or +1 says which side the feature
lies on, and pushes the units of the expert that is not asked into saturation, where what they give is a constant that
is taken away again.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from loopwright.agents.controllers.other_knobs import change_knobs
from loopwright.agents.controllers.policy import Policy, assemble_network, list_linear
from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.envs.loop.observation import OBSERVATION_NAMES

SHARPNESS = 40.0  # of the gate: a quarter of a unit of the feature away from the threshold it has saturated
SATURATED = 10.0  # tanh of this is 1 in single precision
EXPERT_LAYERS = 3


def make_switch(below: Policy, above: Policy, feature: str, threshold: float, raised: Collection[str] = ()) -> Policy:
    """The policy that is ``below`` where ``feature`` of the observation is less than ``threshold``, else ``above``.

    It moves the knobs of ``below``, which have those of ``above`` among them, and starts where ``below`` does. On
    either side it does what the expert does, up to rounding; within a quarter of a unit of the threshold it goes from
    one to the other. Knobs that ``above`` does not have are left alone by it, or, if they are ``raised``, brought to
    their upper bound: clipping, which costs a norm at every update, is off there.

    Its ``training`` has both under ``experts``.

    Raises:
        LoopwrightError: a policy that is not two layers of tanh units and discrete actions, knobs of ``above`` that
            ``below`` does not have, or decisions of another length.
        UnknownNameError: there is no such feature, or no such knob that ``above`` lacks.
    """
    if feature not in OBSERVATION_NAMES:
        raise UnknownNameError("feature", feature, list(OBSERVATION_NAMES))
    _check(below, above)
    experts = [below.network, change_knobs(above, below.knobs, 1.0, raised).network]
    network = _join(experts, OBSERVATION_NAMES.index(feature), threshold)
    switch = {"feature": feature, "threshold": threshold, "raised": list(raised)}
    return replace(below, network=network, training=_describe([below, above], switch))


def _check(below: Policy, above: Policy) -> None:
    for policy in (below, above):
        card = policy.describe()
        layers = len(card["widths"]) - 1
        own = card["action"], card["activation"], layers, policy.lstm is not None
        if own != ("discrete", "tanh", EXPERT_LAYERS, False):
            raise LoopwrightError(
                f"a switch is made of policies with discrete actions and two layers of tanh units, without an LSTM; "
                f"one has {card['action']} actions and {layers - 1} layers of {card['activation']} units"
                + (" after an LSTM" if policy.lstm is not None else "")
            )
    lacking = [knob.name for knob in above.knobs.knobs if knob not in below.knobs.knobs]
    if lacking:
        raise LoopwrightError(
            f"the policy above the threshold moves {', '.join(lacking)}, which the one below it, of "
            f"{below.knobs.name}, does not"
        )
    lengths = [policy.training.get("settings", {}).get("ticks_per_decision") for policy in (below, above)]
    if lengths[0] != lengths[1]:
        raise LoopwrightError(f"their decisions take {lengths[0]} and {lengths[1]} ticks; want as many")


def _describe(experts: list[Policy], switch: dict[str, Any]) -> dict[str, Any]:
    """The card of both: what the judge and a reader need to know of them."""
    own = experts[1].training
    kept = ("algorithm", "suite", "settings", "hidden")
    return {
        **{name: value for name, value in own.items() if name in kept},
        "decisions": sum(int(policy.training.get("decisions", 0)) for policy in experts),
        "switch": switch,
        "experts": [
            {"sha256": policy.fingerprint, "knobs": policy.knobs.name, **policy.training} for policy in experts
        ],
    }


def _join(experts: list[nn.Sequential], column: int, threshold: float) -> nn.Sequential:
    """Side by side, with a gate ``g`` in either layer that is -1 below the threshold and 1 above it."""
    first, second, last = zip(*map(list_linear, experts), strict=True)
    gate = torch.zeros(1, first[0].in_features)
    gate[0, column] = SHARPNESS
    weights = [torch.cat([*(layer.weight for layer in first), gate])]
    biases = [torch.cat([*(layer.bias for layer in first), torch.tensor([-SHARPNESS * threshold])])]
    # How far a unit of the second layer must be pushed for it to lie at -1 whatever the first one gives.
    pushes = [
        (layer.weight.abs().sum(1).max() + layer.bias.abs().max() + SATURATED).expand(layer.out_features, 1) / 2
        for layer in second
    ]
    square = torch.block_diag(*(layer.weight for layer in second), torch.tensor([[2 * SATURATED]]))  # type: ignore[no-untyped-call]
    square[:-1, -1:] = torch.cat([-pushes[0], pushes[1]])  # the first expert is asked where the gate is at -1
    weights.append(square)
    biases.append(torch.cat([*(layer.bias for layer in second), torch.zeros(1)]))
    biases[-1][:-1] -= torch.cat(pushes)[:, 0]
    # Where one expert is asked, the units of the other give -1 each: the sum of their weights is taken away again.
    below, above = last[0].bias + last[1].weight.sum(1), last[1].bias + last[0].weight.sum(1)
    weights.append(torch.cat([last[0].weight, last[1].weight, (above - below)[:, None] / 2], dim=1))
    biases.append((below + above) / 2)
    return assemble_network(weights, biases, "tanh")
