"""Bundles: a policy as one safetensors file, weights and a JSON card. Loading one never executes code.

The card says how the observation was laid out, which knobs the actions move and from which plan, what network the
weights belong to, and how the policy was trained. It also carries the SHA-256 of the weights and of itself, so that a
file that was cut short or altered is refused: a checksum, which says nothing of who wrote it. Policies that the package
brings along are loaded by their names.
"""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, with_config
from torch import nn
from typing_extensions import TypedDict

from loopwright.agents.controllers.carded import CardedFile, TensorLayout, require_layout
from loopwright.agents.controllers.policy import ACTIVATIONS, LSTM, POLICY_FORMAT, Policy, build_network
from loopwright.agents.controllers.recollection import LSTM_GATES
from loopwright.envs.loop.errors import BundleError, LoopwrightError
from loopwright.envs.loop.knob_set import ACTION_KINDS, KnobSet
from loopwright.envs.loop.observation import OBSERVATION_NAMES, OBSERVATION_VERSION
from loopwright.envs.loop.plan import LoopPlan
from loopwright.envs.loop.untrusted import Count, Digest, Name, PlanValues, demand, one_of, strict

SHIPPED = Path(__file__).with_name("shipped")
BUNDLE_LIMIT = 64 << 20  # bytes; those that come along have 0.1 million
MOST_LAYERS = 64


@with_config(ConfigDict(extra="allow", strict=True, allow_inf_nan=False))
class _EpisodeValues(TypedDict, total=False):
    ticks_per_decision: Annotated[int, Field(ge=1, le=10**6)]


@with_config(ConfigDict(extra="allow", strict=True, allow_inf_nan=False))
class _Training(TypedDict, total=False):
    """How a policy was trained: provenance, of which this is used."""

    algorithm: Name
    suite: Name
    decisions: Count
    hidden: list[Name]
    settings: _EpisodeValues


_TRAINING = TypeAdapter[_Training](_Training)


def _check_training(values: dict[str, Any]) -> dict[str, Any]:
    _TRAINING.validate_python(values)
    return values


@strict
class _Card(TypedDict):
    """What a bundle says of itself."""

    format: str
    observation_version: Count
    observation_names: Annotated[list[Name], Field(max_length=10_000)]
    knobs: Name
    action: Annotated[str, AfterValidator(one_of(*ACTION_KINDS))]
    squashed: bool
    activation: Annotated[str, AfterValidator(one_of(*ACTIVATIONS))]
    widths: Annotated[list[Annotated[int, Field(ge=1, le=10**6)]], Field(min_length=2, max_length=MOST_LAYERS + 1)]
    lstm: NotRequired[
        Annotated[list[Annotated[int, Field(ge=1, le=10**6)]], Field(min_length=1, max_length=MOST_LAYERS)]
    ]
    start: PlanValues
    training: Annotated[dict[str, Any], AfterValidator(_check_training)]
    sha256: Digest


_BUNDLE = CardedFile[_Card]("policy bundle", _Card, BUNDLE_LIMIT, BundleError)


def save_policy(policy: Policy, path: Path | str) -> None:
    """Write the policy's bundle to ``path``, a ``.safetensors`` file. Raises ``LoopwrightError`` where that fails."""
    _BUNDLE.write(Path(path), policy.describe(), policy.weights)


def list_policies() -> list[str]:
    """The names of the policies that the package brings along."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def load_policy(path: Path | str) -> Policy:
    """Read a bundle: a ``.safetensors`` file, or the name of one that the package brings along (``list_policies``).

    Raises ``BundleError`` if it is missing, damaged, altered, larger than ``BUNDLE_LIMIT``, does not fit together, or
    was made for another observation.
    """
    path = SHIPPED / f"{path}.safetensors" if str(path) in list_policies() else Path(path)
    if not path.exists():
        raise BundleError(
            f"no bundle at {path}; the policies that come with the package are {', '.join(list_policies())}"
        )
    card, weights = _BUNDLE.read(path, _check_layout)
    if card["observation_version"] != OBSERVATION_VERSION or card["observation_names"] != list(OBSERVATION_NAMES):
        raise BundleError(
            f"{path} was made for observation version {card['observation_version']} with "
            f"{len(card['observation_names'])} features; this package has version {OBSERVATION_VERSION} with "
            f"{len(OBSERVATION_NAMES)}"
        )
    try:
        knobs, start = KnobSet(card["knobs"], card["action"]), LoopPlan.from_json(card["start"])
        remembered = card.get("lstm", [])
        demand(len(set(remembered)) < 2, f"the layers of its LSTM have several widths, {remembered}")
        seen = remembered[-1] if remembered else len(OBSERVATION_NAMES)
        demand(card["widths"][0] == seen, f"widths begin with {card['widths'][0]} features, not {seen}")
        demand(
            card["widths"][-1] == knobs.outputs,
            f"{card['widths'][-1]} outputs, where {knobs.name} takes {knobs.outputs}",
        )
        for name, values in weights.items():
            demand(bool(values.isfinite().all()), f"{name} holds numbers that are not finite")
    except (ValueError, LoopwrightError) as problem:
        raise BundleError(f"{path}: the card and the weights do not fit together: {problem}") from None
    network = build_network(card["widths"], card["activation"])
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    lstm = None
    if remembered:
        lstm = nn.LSTM(len(OBSERVATION_NAMES), remembered[0], len(remembered))
        lstm.load_state_dict({name: weights[f"{LSTM}.{name}"] for name in lstm.state_dict()})
    return Policy(network, knobs, start, card["squashed"], card["training"], lstm=lstm)


def _check_layout(card: _Card, layout: TensorLayout) -> None:
    demand(card["format"] == POLICY_FORMAT, f"format {card['format']!r}; this version reads {POLICY_FORMAT!r}")
    expected: TensorLayout = {}
    for position, (inputs, outputs) in enumerate(pairwise(card["widths"])):
        expected[f"{2 * position}.weight"] = torch.float32, (outputs, inputs)
        expected[f"{2 * position}.bias"] = torch.float32, (outputs,)
    inputs = len(card["observation_names"])
    for position, width in enumerate(card.get("lstm", [])):
        rows = LSTM_GATES * width
        expected[f"{LSTM}.weight_ih_l{position}"] = torch.float32, (rows, inputs)
        expected[f"{LSTM}.weight_hh_l{position}"] = torch.float32, (rows, width)
        for name in ("bias_ih", "bias_hh"):
            expected[f"{LSTM}.{name}_l{position}"] = torch.float32, (rows,)
        inputs = width
    require_layout(layout, expected)
