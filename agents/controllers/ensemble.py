"""Several trainings as one policy: a single network whose outputs are the mean of theirs.

One training differs from another by a few per cent on tasks that it never saw. Averaging logits takes much of that away
(Hansen & Salamon 1990), and since the layers fit into one network block by block, the result is an ordinary bundle.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from loopwright.agents.controllers.policy import Policy, assemble_network, list_linear
from loopwright.envs.loop.errors import LoopwrightError


def make_ensemble(policies: Sequence[Policy]) -> Policy:
    """The policy whose logits (discrete), values (flat) or mean actions before any bound (box) are the mean of theirs.

    Its network is as wide as theirs together. What it was trained with is what they have in common; ``members`` holds
    for each its fingerprint and what else it was trained with, ``decisions`` is the sum.

    Raises ``LoopwrightError`` for fewer than two, for LSTM policies, and where knobs, action, starting plan,
    activation or the number of layers are not the same.
    """
    if len(policies) < 2:
        raise LoopwrightError(f"an ensemble needs two policies or more, got {len(policies)}")
    if any(policy.lstm is not None for policy in policies):
        raise LoopwrightError("policies with an LSTM cannot be put together: what they remember differs")
    cards = [policy.describe() for policy in policies]
    alike = [_list_what_must_be_alike(card) for card in cards]
    for number, own in enumerate(alike[1:], 2):
        for name, value in own.items():
            if value != alike[0][name]:
                raise LoopwrightError(f"policy {number} has {name} {value!r}, the first {alike[0][name]!r}")
    network = _join([policy.network for policy in policies], cards[0]["activation"])
    trainings = [policy.training for policy in policies]
    common, rests = _split([{k: v for k, v in training.items() if k != "decisions"} for training in trainings])
    decisions = [int(training.get("decisions", 0)) for training in trainings]
    members = [
        {"sha256": policy.fingerprint, "decisions": own, **rest}
        for policy, own, rest in zip(policies, decisions, rests, strict=True)
    ]
    return replace(policies[0], network=network, training={**common, "decisions": sum(decisions), "members": members})


def _list_what_must_be_alike(card: dict[str, Any]) -> dict[str, Any]:
    """Of a bundle's card, by names for people."""
    own = {name: card[name] for name in ("knobs", "action", "squashed", "activation", "start")}
    settings = card["training"].get("settings", {})
    return own | {
        "number of features": card["widths"][0],
        "number of layers": len(card["widths"]) - 1,
        "ticks per decision": settings.get("ticks_per_decision"),
    }


def _split(cards: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What all have in common, of mappings in them too, and what is left of each."""
    common: dict[str, Any] = {}
    rests: list[dict[str, Any]] = [{} for _ in cards]
    for name in dict.fromkeys(name for card in cards for name in card):
        values = [card[name] for card in cards if name in card]
        everywhere = len(values) == len(cards)
        if everywhere and all(value == values[0] for value in values):
            common[name] = values[0]
        elif everywhere and all(isinstance(value, dict) for value in values):
            common[name], lefts = _split(values)
            for rest, left in zip(rests, lefts, strict=True):
                rest.update({name: left} if left else {})
        else:
            for rest, card in zip(rests, cards, strict=True):
                rest.update({name: card[name]} if name in card else {})
    return common, rests


def _join(networks: Sequence[nn.Sequential], activation: str) -> nn.Sequential:
    """Side by side: each sees all features, and none the others' layers; of the last one's outputs the mean."""
    layers = list(zip(*map(list_linear, networks), strict=True))
    weights = [torch.block_diag(*(layer.weight for layer in own)) for own in layers]  # type: ignore[no-untyped-call]
    biases = [torch.cat([layer.bias for layer in own]) for own in layers]
    weights[0] = torch.cat([layer.weight for layer in layers[0]])
    weights[-1], biases[-1] = (
        stacked.unflatten(0, (len(networks), -1)).mean(0) for stacked in (weights[-1], biases[-1])
    )
    return assemble_network(weights, biases, activation)
