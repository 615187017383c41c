"""Takes the policy out of a trained Stable-Baselines3 model: only what it can reproduce, and that is proved."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from loopwright.agents.controllers.policy import ACTIVATIONS, Policy, build_network
from loopwright.agents.controllers.recollection import copy_lstm
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import LIMIT
from loopwright.envs.loop.plan import LoopPlan

PROOFS = 256  # random observations on which a policy is compared with the model that it was taken from
PROVED_DECISIONS = 4  # one after another, of runs that begin anew now and then


def extract_policy(
    model: Any,
    knobs: KnobSet,
    start: LoopPlan,
    training: dict[str, Any] | None = None,
    hidden: Sequence[int] = (),
) -> Policy:
    """The policy of a trained Stable-Baselines3 model, and its environment's knobs and starting plan.

    ``training`` is provenance to keep with it. To features that were ``hidden`` in training it gives no weight. The
    statistics of a ``VecNormalize`` become part of the first layer, as they are now; what it clips, by default what is
    ten standard deviations away, is not clipped then. Raises ``LoopwrightError`` for a policy that is no plain MLP on
    the observation itself or on what a plain LSTM makes of it, or that acts otherwise than these on random
    observations.
    """
    for part in (model.policy, getattr(model.policy, "actor", None)):
        extractor = getattr(part, "features_extractor", None)
        if extractor is not None and type(extractor) is not FlattenExtractor:
            raise LoopwrightError(
                f"cannot take a policy with a {type(extractor).__name__}: it takes the observation itself "
                f"(FlattenExtractor)"
            )
    layers, squashed = _find_actor(model.policy)
    network, lstm = copy_layers(layers), _copy_lstm(model.policy)
    weight, bias = _find_first(network, lstm)
    normalize = model.get_vec_normalize_env()
    with torch.no_grad():
        if normalize is not None and normalize.norm_obs:
            mean, deviation = _read_statistics(normalize)
            bias -= weight @ torch.from_numpy(mean / deviation).float()
            weight /= torch.from_numpy(deviation).float()
        weight[:, list(hidden)] = 0.0
    provenance = {"algorithm": type(model).__name__, "decisions": int(model.num_timesteps), **(training or {})}
    policy = Policy(network, knobs, start, squashed, provenance, lstm=lstm)
    _prove(policy, model, hidden)
    return policy


def _copy_lstm(policy: Any) -> nn.LSTM | None:
    """What comes before the actor of a recurrent policy."""
    if not hasattr(policy, "lstm_actor"):
        return None
    try:
        return copy_lstm(policy.lstm_actor)
    except ValueError as problem:
        raise LoopwrightError(f"cannot take a policy with {problem}") from None


def _find_first(network: nn.Sequential, lstm: nn.LSTM | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights and the biases that the observation meets first."""
    first: Any = network[0] if lstm is None else lstm
    return (first.weight, first.bias) if lstm is None else (first.weight_ih_l0, first.bias_ih_l0)


def insert_policy(model: Any, policy: Policy) -> None:
    """Give a Stable-Baselines3 model the network of a policy, to train it on: the inverse of ``extract_policy``.

    The model keeps its critic. Raises ``LoopwrightError`` for one of other widths or actions, or another activation.
    """
    if model.get_vec_normalize_env() is not None:
        raise LoopwrightError("cannot give a policy to a model with VecNormalize: it would see other observations")
    layers, squashed = _find_actor(model.policy)
    own = _list_layers(copy_layers(layers), _copy_lstm(model.policy))
    given = _list_layers(policy.network, policy.lstm)
    if repr(own) != repr(given) or squashed != policy.squashed:
        raise LoopwrightError(
            f"the policy's network is {_say_layers(given)}, that of this {type(model).__name__} {_say_layers(own)}; "
            f"make it with policy_kwargs of the same net_arch and activation_fn"
        )
    if _is_quantiles(model.policy):
        raise LoopwrightError("cannot give a policy to a QRDQN: a bundle holds the mean of its quantiles")
    if policy.lstm is not None:
        model.policy.lstm_actor.load_state_dict(policy.lstm.state_dict())
    for layer, new in zip(layers[::2], list(policy.network)[::2], strict=True):
        layer.load_state_dict(new.state_dict())
    for name, target in (("actor", "actor_target"), ("q_net", "q_net_target")):
        if hasattr(model, target):
            getattr(model, target).load_state_dict(getattr(model, name).state_dict())
    _prove(policy, model, ())


def _list_layers(network: nn.Sequential, lstm: nn.LSTM | None) -> list[nn.Module]:
    return [*network] if lstm is None else [lstm, *network]


def _say_layers(layers: Iterable[nn.Module]) -> str:
    return ", ".join(repr(layer) for layer in layers)


def _read_statistics(normalize: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The mean and the standard deviation that observations are normalised by."""
    return normalize.obs_rms.mean, np.sqrt(normalize.obs_rms.var + normalize.epsilon)


def _is_quantiles(policy: Any) -> bool:
    return hasattr(policy, "quantile_net")


def _average_quantiles(layers: list[nn.Module], count: int) -> list[nn.Module]:
    """The same layers, but that the last gives the mean of ``count`` quantiles of each action."""
    last: Any = layers[-1]
    mean = nn.Linear(last.in_features, last.out_features // count)
    with torch.no_grad():
        mean.weight.copy_(last.weight.unflatten(0, (count, -1)).mean(dim=0))
        mean.bias.copy_(last.bias.unflatten(0, (count, -1)).mean(dim=0))
    return [*layers[:-1], mean]


def _find_actor(policy: Any) -> tuple[list[nn.Module], bool]:
    """The layers from observation to action, and whether tanh is applied to what they give."""
    actor: Any = getattr(policy, "actor", None)
    if hasattr(policy, "q_net") and not hasattr(policy, "actor"):
        return list(policy.q_net.q_net), False
    if _is_quantiles(policy):
        net = policy.quantile_net
        return _average_quantiles(list(net.quantile_net), net.n_quantiles), False
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


def copy_layers(layers: list[nn.Module]) -> nn.Sequential:
    """A network of its own of these layers. Raises ``LoopwrightError`` for what a bundle cannot hold."""
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


def draw_proofs(features: int, mean: Any = 0.0, deviation: Any = 1.0) -> npt.NDArray[np.float32]:
    """Random observations ``[PROOFS, features]`` around a mean, within what an environment shows."""
    seen = mean + deviation * np.random.default_rng(0).normal(0, 2, (PROOFS, features))
    proofs: npt.NDArray[np.float32] = np.clip(seen, -LIMIT, LIMIT).astype(np.float32)
    return proofs


def _prove(policy: Policy, model: Any, hidden: Sequence[int]) -> None:
    """Raise ``LoopwrightError`` unless the policy acts as the model does, to which something is hidden."""
    shape, features = model.observation_space.shape, policy.features
    if shape != (features,):
        raise LoopwrightError(f"the network takes {features} features, observations are {shape}")
    normalize = model.get_vec_normalize_env()
    # Those of normalised observations lie where nothing is clipped.
    seen = draw_proofs(features, *(_read_statistics(normalize) if normalize is not None and normalize.norm_obs else ()))
    shown = seen.copy()
    shown[:, list(hidden)] = 0.0
    shown = shown if normalize is None else normalize.normalize_obs(shown).astype(np.float32)
    known: Any = None
    found_state: Any = None
    runs = PROOFS // PROVED_DECISIONS
    for begin in range(0, PROOFS, runs):
        starts, part = np.arange(runs) % (begin + 2) == 0, slice(begin, begin + runs)
        expected, known = model.predict(shown[part], state=known, episode_start=starts, deterministic=True)
        found, found_state = policy.predict(seen[part], found_state, starts)
        if found.shape != expected.shape or not np.allclose(found, expected, atol=1e-5):
            raise LoopwrightError(
                f"cannot take the policy of this {type(model).__name__}: on random observations it acts otherwise than "
                f"its actor network alone"
            )
