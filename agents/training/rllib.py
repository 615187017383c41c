"""Takes the policy out of a module that Ray's RLlib has trained, as ``extraction`` does of Stable-Baselines3."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from loopwright.agents.controllers.policy import Policy
from loopwright.agents.training.extraction import copy_layers, draw_proofs
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import OBSERVATION_NAMES
from loopwright.envs.loop.plan import LoopPlan


def extract_rllib_policy(
    module: Any, knobs: KnobSet, start: LoopPlan, training: dict[str, Any] | None = None
) -> Policy:
    """The policy of an ``RLModule`` of PPO's (new API stack), and its environment's knobs and starting plan.

    ``module`` is what ``algorithm.get_module()`` gives; ``training`` is provenance to keep with it. Raises
    ``LoopwrightError`` for one that is no plain MLP on the observation itself, or that acts otherwise than the network
    alone on random observations.
    """
    encoder = getattr(module, "encoder", None)
    actor = getattr(encoder, "actor_encoder", None) or getattr(encoder, "encoder", None)
    if actor is None or not hasattr(module, "pi"):
        raise LoopwrightError(f"cannot take the policy of a {type(module).__name__}: it has no plain actor network")
    network = copy_layers([*_list_leaves(actor), *_list_leaves(module.pi)])
    last: Any = network[-1]
    if knobs.action == "box":  # the deviations come after the means
        mean = nn.Linear(last.in_features, len(knobs.knobs))
        mean.load_state_dict({name: value[: len(knobs.knobs)] for name, value in last.state_dict().items()})
        network[-1] = mean
    policy = Policy(network, knobs, start, training=training or {})
    first: Any = network[0]
    shape = int(first.in_features), int(network[-1].out_features)  # type: ignore[arg-type]
    if shape != (len(OBSERVATION_NAMES), knobs.outputs):
        raise LoopwrightError(
            f"the network takes {shape[0]} features and gives {shape[1]} outputs; want {len(OBSERVATION_NAMES)} and "
            f"{knobs.outputs}"
        )
    seen = draw_proofs(shape[0])
    with torch.no_grad():
        expected = module.forward_inference({"obs": torch.from_numpy(seen)})["action_dist_inputs"].numpy()
        found = network(torch.from_numpy(seen)).numpy()
    if not np.allclose(found, expected[:, : shape[1]], atol=1e-4):
        raise LoopwrightError("cannot take the policy of this module: it acts otherwise than its actor network alone")
    return policy


def _list_leaves(module: nn.Module) -> Iterator[nn.Module]:
    """The layers that a module is made of, in order."""
    for own in module.modules():
        if not list(own.children()) and not isinstance(own, nn.Identity):
            yield own
