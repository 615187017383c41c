"""Start: what an episode begins with."""

from collections.abc import Mapping
from typing import NamedTuple

from loopwright.envs.loop.plan import LoopPlan
from loopwright.inner_tasks.task import Task


class Start(NamedTuple):
    """What an episode begins with.

    Attributes:
        task: what is trained.
        seed: of the weights and of the data order.
        plan: the plan before the first decision.
        prices: geq that an update costs, by the name of what makes it; None takes those of the settings' price list.
        updates_by: whose price is charged where another library's optimizer makes the updates; empty is the plan's.
        withheld: what the controller is not told (``envs.loop.context.INFORMATION``).
        open_budget: of an *open run*, which has no target and ends with its budget: that budget in multiples of C*;
            0 for a run with a target and the settings' budget. The target is then among what is withheld.
        held: knobs that an environment leaves alone whatever the action says, as an attached policy does with what the
            user's optimizer has nothing for.
    """

    task: Task
    seed: int
    plan: LoopPlan = LoopPlan()
    prices: Mapping[str, float] | None = None
    updates_by: str = ""
    withheld: tuple[str, ...] = ()
    open_budget: float = 0.0
    held: tuple[str, ...] = ()
