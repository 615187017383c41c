"""Bundles: a learned policy as one safetensors file, weights and a JSON card. Loading one never executes code.

The card says how the observation was laid out, which knobs the actions move and from which plan, what network the
weights belong to, and how the policy was trained. It also carries the SHA-256 of the weights and of itself, so that a
file that was cut short or altered is refused.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from loopwright.agents.controller import View
from loopwright.envs.knobs import KnobSet
from loopwright.envs.observation import LIMIT, OBSERVATION_NAMES, OBSERVATION_VERSION, Needs
from loopwright.envs.plan import LoopPlan
from loopwright.inner_tasks.errors import BundleError, LoopwrightError

FORMAT = "loopwright-policy-1"
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU, "leaky-relu": nn.LeakyReLU,
}  # fmt: skip
_PROOFS = 256  # random observations on which a bundle is compared with the model that it is made of
_CARD_KEYS = {"format", "observation_version", "observation_names", "knobs", "action", "squashed", "activation",
              "widths", "start", "training", "sha256"}  # fmt: skip


@dataclass(frozen=True)
class Bundle:
    """A policy network and what it needs to know: it is a ``Controller``.

    Attributes:
        network: observation ``[lanes, features]`` to logits (discrete) or the mean action (box).
        knobs: the knobs its actions move.
        start: the plan it was trained to start from.
        squashed: whether tanh is applied to the network's output (SAC, TQC, TD3).
        training: how it was trained; provenance, not used.
    """

    network: nn.Sequential
    knobs: KnobSet
    start: LoopPlan
    squashed: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    name: str = "agent"

    @torch.no_grad()
    def act(self, observation: torch.Tensor) -> torch.Tensor:
        """The most probable actions ``[lanes, knobs]`` for observations ``[lanes, features]``, as the environment's."""
        if self.knobs.action == "box":
            return self._box(observation)
        return torch.stack([part.argmax(dim=1) for part in self._logits(observation)], dim=1)

    @torch.no_grad()
    def steps(self, observation: torch.Tensor) -> torch.Tensor:
        """How far to move each knob, ``[lanes, knobs]`` in its encoding.

        A discrete policy is a distribution over a knob's ordered steps. Its mean is what the knob is moved by, since
        the most probable step is often "none" where two or three steps share the rest; a knob that takes rungs
        is moved by the most probable one.
        """
        if self.knobs.action == "box":
            return self._box(observation) * torch.tensor([knob.steps[-1] for knob in self.knobs.knobs])
        columns = []
        for knob, logits in zip(self.knobs.knobs, self._logits(observation), strict=True):
            sizes = torch.tensor(knob.steps)
            columns.append(sizes[logits.argmax(dim=1)] if knob.whole else logits.softmax(dim=1) @ sizes)
        return torch.stack(columns, dim=1)

    @property
    def needs(self) -> Needs:
        return Needs.OBSERVATION

    def decide(self, view: View) -> torch.Tensor:
        return self.knobs.move(self.steps(view.observation), view.plans, view.step_ratio)

    @property
    def rolls_back(self) -> bool:
        return self.knobs.rolls_back

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the card and the weights, as a saved bundle carries it."""
        return _fingerprint(_card(self), _tensors(self))

    def _box(self, observation: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.network(observation)
        return output.tanh() if self.squashed else output.clamp(-1, 1)

    def _logits(self, observation: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.split(self.network(observation), [len(knob.steps) for knob in self.knobs.knobs], dim=1)

    @classmethod
    def from_model(
        cls, model: Any, knobs: KnobSet, start: LoopPlan, training: dict[str, Any] | None = None
    ) -> "Bundle":
        """The policy of a trained Stable-Baselines3 model, and the environment's knobs and starting plan.

        ``training`` is provenance to keep with it. Raises ``LoopwrightError`` for a policy that is no plain MLP on the
        observation itself, or that acts otherwise than the bundle on random observations.
        """
        policy = model.policy
        if model.get_vec_normalize_env() is not None:
            raise LoopwrightError("cannot make a bundle of a model with VecNormalize: its statistics would be lost")
        for part in (policy, getattr(policy, "actor", None)):
            extractor = getattr(part, "features_extractor", None)
            if extractor is not None and type(extractor) is not FlattenExtractor:
                raise LoopwrightError(
                    f"cannot make a bundle of a policy with a {type(extractor).__name__}: it takes the observation "
                    f"itself (FlattenExtractor)"
                )
        if hasattr(policy, "mlp_extractor"):
            layers, squashed = [*policy.mlp_extractor.policy_net, policy.action_net], False
        elif hasattr(getattr(policy, "actor", None), "latent_pi"):
            layers, squashed = [*policy.actor.latent_pi, policy.actor.mu], True
        elif hasattr(getattr(policy, "actor", None), "mu"):
            layers, squashed = list(policy.actor.mu), True
        elif hasattr(policy, "action_net"):
            layers = list(policy.action_net)
            squashed = isinstance(layers[-1], nn.Tanh)
        else:
            raise LoopwrightError(f"cannot make a bundle of a {type(policy).__name__}: it has no plain actor network")
        if squashed and isinstance(layers[-1], nn.Tanh):
            layers = layers[:-1]
        linear, between = layers[::2], layers[1::2]
        kind = next((name for name, module in _ACTIVATIONS.items() if between and type(between[0]) is module), "tanh")
        strange = [layer for layer in linear if not isinstance(layer, nn.Linear)]
        strange += [layer for layer in between if repr(layer) != repr(_ACTIVATIONS[kind]())]
        if strange:
            raise LoopwrightError(
                f"cannot make a bundle of a network with {strange[0]!r}: accepted are linear layers with one kind of "
                f"activation between them, {', '.join(m.__name__ for m in _ACTIVATIONS.values())}"
            )
        widths = [int(linear[0].in_features), *(int(layer.out_features) for layer in linear)]
        network = _build(widths, kind)
        for new, old in zip(list(network)[::2], linear, strict=True):
            new.load_state_dict(old.state_dict())
        provenance = {"algorithm": type(model).__name__, "decisions": int(model.num_timesteps), **(training or {})}
        bundle = cls(network, knobs, start, squashed, provenance)
        bundle._prove(model)
        return bundle

    def _prove(self, model: Any) -> None:
        """Raise ``LoopwrightError`` unless the bundle acts as the model does."""
        shape, features = model.observation_space.shape, self.network[0].in_features
        if shape != (features,):
            raise LoopwrightError(f"the network takes {features} features, observations are {shape}")
        seen = np.random.default_rng(0).normal(0, 2, (_PROOFS, *shape)).clip(-LIMIT, LIMIT).astype(np.float32)
        expected, _ = model.predict(seen, deterministic=True)
        found = self.act(torch.from_numpy(seen)).numpy()
        if found.shape != expected.shape or not np.allclose(found, expected, atol=1e-5):
            raise LoopwrightError(
                f"cannot make a bundle of this {type(model).__name__}: on random observations it acts otherwise than "
                f"its actor network alone"
            )


def _build(widths: list[int], activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def _fingerprint(card: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(json.dumps({k: v for k, v in card.items() if k != "sha256"}, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_bundle(bundle: Bundle, path: Path) -> None:
    """Write the bundle to ``path``, a ``.safetensors`` file."""
    card = _card(bundle) | {"sha256": bundle.fingerprint}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(_tensors(bundle), path, metadata={"card": json.dumps(card)})


def _tensors(bundle: Bundle) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in bundle.network.state_dict().items()}


def _card(bundle: Bundle) -> dict[str, Any]:
    linear = [layer for layer in bundle.network if isinstance(layer, nn.Linear)]
    activation = next((k for layer in bundle.network for k, m in _ACTIVATIONS.items() if type(layer) is m), "tanh")
    return {
        "format": FORMAT,
        "observation_version": OBSERVATION_VERSION,
        "observation_names": list(OBSERVATION_NAMES),
        "knobs": bundle.knobs.name,
        "action": bundle.knobs.action,
        "squashed": bundle.squashed,
        "activation": activation,
        "widths": [int(linear[0].in_features), *(int(layer.out_features) for layer in linear)],
        "start": bundle.start.as_json(),
        "training": bundle.training,
    }


def load_bundle(path: Path) -> Bundle:
    """Read a bundle. Raises ``BundleError`` if it is missing, cut short, altered, or made for another observation."""
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {})["card"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except FileNotFoundError:
        raise BundleError(f"no bundle at {path}") from None
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as problem:
        raise BundleError(f"{path} is not a readable policy bundle: {problem}") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT or set(card) != _CARD_KEYS:
        raise BundleError(f"{path}: card of format {card.get('format') if isinstance(card, dict) else card!r} with "
                          f"unexpected entries; this version reads {FORMAT}")  # fmt: skip
    if card["sha256"] != _fingerprint(card, tensors):
        raise BundleError(f"{path} was altered: its SHA-256 does not match the one on its card")
    if card["observation_version"] != OBSERVATION_VERSION or card["observation_names"] != list(OBSERVATION_NAMES):
        raise BundleError(
            f"{path} was made for observation version {card['observation_version']} with "
            f"{len(card['observation_names'])} features; this package has version {OBSERVATION_VERSION} with "
            f"{len(OBSERVATION_NAMES)}"
        )
    try:
        network = _build(card["widths"], card["activation"])
        network.load_state_dict(tensors)
        start = LoopPlan.from_json(card["start"])
        knobs = KnobSet(card["knobs"], card["action"])
    except (RuntimeError, TypeError, KeyError, LoopwrightError) as problem:
        raise BundleError(f"{path}: the card and the weights do not fit together: {problem}") from None
    return Bundle(network, knobs, start, card["squashed"], card["training"])
