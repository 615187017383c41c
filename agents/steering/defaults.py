"""What holds where a user says nothing: which policy steers an optimizer, and what it is held to."""

from collections.abc import Collection, Mapping

from loopwright.agents.steering.groups import BETA, LEARNING_RATE_ALONE, Groups

WHOLE_POLICY, ADAM_POLICY, PLAIN_POLICY = "core", "adamw", "lr-clip-average"
Limits = dict[str, tuple[float, float]]
# On the networks of a few thousand parameters that policies are trained on, averaging the weights does what momenta do,
# and these go to 0 and 0.5. On larger ones, with a cooldown and batch norm, they are worth having.
MOMENTA: Limits = {"momentum": (0.6, 0.9), "second_momentum": (0.9, 0.99)}


def name_policy(groups: Groups) -> str:
    """The policy that comes with the package for such an optimizer."""
    if groups.whole is not None:
        return WHOLE_POLICY
    return ADAM_POLICY if groups.means.momentum == BETA else PLAIN_POLICY


def find_limits(groups: Groups, plan: Mapping[str, float], fields: Collection[str]) -> Limits:
    """Of ``fields``, which a policy moves: those of ``MOMENTA`` for an optimizer with betas; the decay stays as it is.

    A ``PlanOptimizer`` has none, nor has an optimizer of which nothing but the learning rate is known.
    """
    if groups.whole is not None or groups.means is LEARNING_RATE_ALONE:
        return {}
    momenta = MOMENTA if groups.means.momentum == BETA else {}
    own = plan["weight_decay"]
    return {field: limit for field, limit in {**momenta, "weight_decay": (own, own)}.items() if field in fields}
