"""Takes the policy out of a trained Stable-Baselines3 model: only what it can reproduce, and that is proved."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from loopwright.agents.controllers.policy import ACTIVATIONS, Policy, build_network
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import LIMIT
from loopwright.envs.loop.plan import LoopPlan

PROOFS = 256  # random observations on which a policy is compared with the model that it was taken from


def extract_policy(
    model: Any,
    knobs: KnobSet,
    start: LoopPlan,
    training: dict[str, Any] | None = None,
    hidden: Sequence[int] = (),
) -> Policy:
    """The policy of a trained Stable-Baselines3 model, and its environment's knobs and starting plan.

    ``training`` is provenance to keep with it. To features that were ``hidden`` in training it gives no weight. Raises
    ``LoopwrightError`` for a policy that is no plain MLP on the observation itself, or that acts otherwise than the
    network alone on random observations.
    """
    if model.get_vec_normalize_env() is not None:
        raise LoopwrightError("cannot take the policy of a model with VecNormalize: its statistics would be lost")
    for part in (model.policy, getattr(model.policy, "actor", None)):
        extractor = getattr(part, "features_extractor", None)
        if extractor is not None and type(extractor) is not FlattenExtractor:
            raise LoopwrightError(
                f"cannot take a policy with a {type(extractor).__name__}: it takes the observation itself "
                f"(FlattenExtractor)"
            )
    layers, squashed = _find_actor(model.policy)
    network = _copy(layers)
    first: Any = network[0]
    with torch.no_grad():
        first.weight[:, list(hidden)] = 0.0
    provenance = {"algorithm": type(model).__name__, "decisions": int(model.num_timesteps), **(training or {})}
    policy = Policy(network, knobs, start, squashed, provenance)
    _prove(policy, model, hidden)
    return policy


def _find_actor(policy: Any) -> tuple[list[nn.Module], bool]:
    """The layers from observation to action, and whether tanh is applied to what they give."""
    actor: Any = getattr(policy, "actor", None)
    if hasattr(policy, "mlp_extractor"):
        return [*policy.mlp_extractor.policy_net, policy.action_net], False
    if hasattr(actor, "latent_pi"):
        return [*actor.latent_pi, actor.mu], True
    if hasattr(actor, "mu"):
        layers, squashed = list(actor.mu), True
    elif hasattr(policy, "action_net"):
        layers = list(policy.action_net)
        squashed = isinstance(layers[-1], nn.Tanh)
    else:
        raise LoopwrightError(f"cannot take the policy of a {type(policy).__name__}: it has no plain actor network")
    return (layers[:-1] if squashed and isinstance(layers[-1], nn.Tanh) else layers), squashed


def _copy(layers: list[nn.Module]) -> nn.Sequential:
    linear, between = layers[::2], layers[1::2]
    kind = next((name for name, module in ACTIVATIONS.items() if between and type(between[0]) is module), "tanh")
    strange = [layer for layer in linear if not isinstance(layer, nn.Linear)]
    strange += [layer for layer in between if repr(layer) != repr(ACTIVATIONS[kind]())]
    if strange:
        raise LoopwrightError(
            f"cannot take a policy with {strange[0]!r}: accepted are linear layers with one kind of activation between "
            f"them, {', '.join(m.__name__ for m in ACTIVATIONS.values())}"
        )
    widths = [int(linear[0].in_features), *(int(layer.out_features) for layer in linear)]  # type: ignore[arg-type]
    network = build_network(widths, kind)
    for new, old in zip(list(network)[::2], linear, strict=True):
        new.load_state_dict(old.state_dict())
    return network


def _prove(policy: Policy, model: Any, hidden: Sequence[int]) -> None:
    """Raise ``LoopwrightError`` unless the policy acts as the model does, to which something is hidden."""
    shape, features = model.observation_space.shape, policy.network[0].in_features
    if shape != (features,):
        raise LoopwrightError(f"the network takes {features} features, observations are {shape}")
    seen = np.random.default_rng(0).normal(0, 2, (PROOFS, *shape)).clip(-LIMIT, LIMIT).astype(np.float32)
    shown = seen.copy()
    shown[:, list(hidden)] = 0.0
    expected, _ = model.predict(shown, deterministic=True)
    found = policy.act(seen)
    if found.shape != expected.shape or not np.allclose(found, expected, atol=1e-5):
        raise LoopwrightError(
            f"cannot take the policy of this {type(model).__name__}: on random observations it acts otherwise than its "
            f"actor network alone"
        )
