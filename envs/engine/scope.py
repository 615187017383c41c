"""Scope: how much of a plan is in use in any lane. Ticks are made for each, and do no more than it takes."""

from enum import IntEnum

import torch

from loopwright.envs.loop.plan import ADAMW, CHOICES, ROW

SHUFFLED = CHOICES["order"].index("shuffled")
JOINT, BOTTOM_UP = CHOICES["sweep"].index("joint"), CHOICES["sweep"].index("bottom-up")


class Scope(IntEnum):
    """What a narrow scope leaves out would have changed nothing, to the bit.

    LEAN: one microbatch an update, no matrix rule, nothing of the loop's structure. FLAT: without the latter alone.
    WHOLE: everything.
    """

    LEAN = 0
    FLAT = 1
    WHOLE = 2


def find_scope(plans: torch.Tensor, scalars: torch.Tensor) -> Scope:
    """The narrowest scope for ``plans [len(PLAN_FIELDS), lanes]`` and the state's ``scalars``."""
    plan = {name: plans[row] for name, row in ROW.items()}
    flat = (plan["depth"] == 1) & (plan["keep"] == 1) & (plan["order"] == SHUFFLED) & (plan["sweep"] == JOINT)
    blocks = (len(scalars) - 1) // 2
    together = all((own == own[0]).all() for own in (scalars[1 : 1 + blocks], scalars[1 + blocks :]))
    if not (together and flat.all()):
        return Scope.WHOLE
    lean = (plan["batch"] == 1) & (plan["optimizer"] <= ADAMW) & (scalars[0] == 0)
    return Scope.LEAN if lean.all() else Scope.FLAT
