"""What holds where a user says nothing: which policy steers an optimizer, and what it is held to."""

from collections.abc import Collection, Mapping
from pathlib import Path
from types import NoneType

from loopwright.agents.controllers.bundle import load_policy
from loopwright.agents.controllers.policy import Policy
from loopwright.agents.steering.groups import LEARNING_RATE_ALONE, Groups
from loopwright.agents.steering.limits import Limits
from loopwright.envs.loop.checks import check_kind
from loopwright.envs.loop.context import Context

WHOLE_POLICY, ADAM_POLICY, PLAIN_POLICY = "all", "adamw", "lr-clip-average"
# On the networks of a few thousand parameters that policies are trained on, averaging the weights does what momenta do,
# and these go to 0 and 0.5. On larger ones, with a cooldown and batch norm, they are worth having.
MOMENTA: Limits = {"momentum": (0.6, 0.9), "second_momentum": (0.9, 0.99)}


def choose_policy(policy: Policy | Path | str | None, groups: Groups) -> Policy:
    """The one given, read where it is a path or a name; for None that which comes with the package for such groups.

    Raises ``LoopwrightError`` for what is none of these, or cannot be read.
    """
    check_kind("policy", policy, (Policy, Path, str, NoneType), "a policy, a path or name of one, or None")
    if isinstance(policy, Policy):
        return policy
    return load_policy(_name_policy(groups) if policy is None else policy)


def _name_policy(groups: Groups) -> str:
    if groups.whole is not None:
        return WHOLE_POLICY
    return ADAM_POLICY if groups.has_adam_means else PLAIN_POLICY


def find_limits(groups: Groups, plan: Mapping[str, float], fields: Collection[str]) -> Limits:
    """Of ``fields``, which a policy moves: those of ``MOMENTA`` for one of AdamW's kin; the decay stays as it is.

    An optimizer of which nothing but the learning rate is known has none.
    """
    if groups.whole is None and groups.means is LEARNING_RATE_ALONE:
        return {}
    momenta = MOMENTA if groups.has_adam_means else {}
    own = plan["weight_decay"]
    return {field: limit for field, limit in {**momenta, "weight_decay": (own, own)}.items() if field in fields}


def make_context(
    groups: Groups, target: float | None, steps: int | None, samples: int | None, batch_size: int | None
) -> Context:
    """What a policy is told of a run; what is not known is withheld from it. For arguments see ``Steering``."""
    microbatch = batch_size or 1
    budget = None if steps is None else float(steps * microbatch)
    known = Context(control=False, target=target, budget=budget, parameters=groups.size, samples=samples,
                    microbatch=microbatch)  # fmt: skip
    return known.without([] if samples and batch_size else ["size"])
