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
    """

    task: Task
    seed: int
    plan: LoopPlan = LoopPlan()
    prices: Mapping[str, float] | None = None
    updates_by: str = ""
    withheld: tuple[str, ...] = ()
