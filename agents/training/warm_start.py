"""A training that begins with what a saved policy knows, be it of other knobs.

The critic is new, and advantages by a critic that knows nothing would unteach the policy: it learns alone at first.
"""

from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from loopwright.agents.controllers.other_knobs import change_knobs
from loopwright.agents.controllers.policy import ACTIVATIONS, Policy
from loopwright.agents.training.extraction import insert_policy
from loopwright.envs.loop.knob_set import KnobSet

CRITIC_ALONE = 8  # rollouts
NEW_STANDING_STILL = 0.97  # chance with which a knob that the policy lacks is left alone, at first


def shape_as(policy: Policy) -> dict[str, Any]:
    """Options of an algorithm whose actor is to have the network of a ``policy``."""
    card = policy.describe()
    layers = {"pi": card["widths"][1:-1], "vf": [128, 128]}
    return {"policy_kwargs": {"net_arch": layers, "activation_fn": ACTIVATIONS[card["activation"]]}}


def start_from(model: BaseAlgorithm, policy: Policy, knobs: KnobSet) -> None:
    """Give a model that steers ``knobs`` the network of a ``policy``. Raises ``LoopwrightError`` where it cannot be."""
    insert_policy(model, change_knobs(policy, knobs, NEW_STANDING_STILL))


def let_learn(model: Any, actor: bool) -> None:
    """Let the actor of an on-policy model learn with its critic, or not."""
    for part in (model.policy.mlp_extractor.policy_net, model.policy.action_net):
        part.requires_grad_(actor)
