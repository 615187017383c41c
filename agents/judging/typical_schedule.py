"""The agent's typical schedule: what it does on its training tasks, without looking.

At each decision the median of every field over its runs, as long as a quarter of them goes on. Replayed on other tasks,
it says what of the agent's gain is a good schedule for anything, and what is feedback.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from typing_extensions import TypedDict

from loopwright.agents.controllers.policy import Policy
from loopwright.agents.controllers.simple import OpenLoop
from loopwright.agents.judging.results import RunRecord
from loopwright.agents.judging.runner import run_controller
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.controller import Controller
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.plan import LoopPlan, stack_plans, unstack_plans
from loopwright.envs.loop.storage import write_whole
from loopwright.envs.loop.untrusted import PlanEntry, Reader, strict
from loopwright.inner_tasks.registry import get_tasks
from loopwright.inner_tasks.suites import get_suite

TYPICAL = "typical schedule"
SCHEDULE = "schedule.json"
SCHEDULE_TASKS, SCHEDULE_SEEDS = 24, (8_000_000, 8_000_001)
GOING_ON = 0.25  # share of the runs


@strict
class _MadeBy(TypedDict):
    agent: str
    prices: str


@strict
class _Schedule(TypedDict):
    """What is kept of a schedule: whose it is, and its plans."""

    made_by: _MadeBy
    plans: Annotated[list[PlanEntry], Field(min_length=1)]


_SCHEDULE = Reader[_Schedule](_Schedule)


def list_training_tasks(agent: Controller) -> list[str]:
    """The tasks whose runs the schedule is made of: the first of the suite that the agent was trained on."""
    suite = agent.training.get("suite", "train") if isinstance(agent, Policy) else "train"
    return get_suite(suite).tasks()[:SCHEDULE_TASKS]


def make_typical_schedule(
    agent: Controller, settings: EpisodeSettings, folder: Path, progress: Callable[[int], None]
) -> OpenLoop:
    """Run the agent on training tasks and keep its typical schedule in ``folder``, or read the one that is there.

    ``progress`` is called with how many runs are done beyond the last call. Raises ``LoopwrightError`` where the folder
    holds another agent's.
    """
    path, names = folder / SCHEDULE, list_training_tasks(agent)
    made_by = {"agent": agent.fingerprint, "prices": settings.price_list.name}
    if path.exists():
        kept = _SCHEDULE.read(path)
        differs = sorted(name for name in made_by if kept["made_by"][name] != made_by[name])  # type: ignore[literal-required]
        if differs:
            raise LoopwrightError(
                f"{path} belongs to another evaluation ({', '.join(differs)} differ); choose another folder"
            )
        progress(len(names) * len(SCHEDULE_SEEDS))
        return OpenLoop(tuple(kept["plans"]), TYPICAL)

    def count(record: RunRecord) -> None:
        progress(1)

    records = run_controller(agent, get_tasks(names), SCHEDULE_SEEDS, settings, traced=True, on_run=count)
    plans = find_typical_plans([[point.plan for point in record.trace] for record in records])
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"made_by": made_by, "plans": [plan.as_json() for plan in plans]}) + "\n")
    return OpenLoop(plans, TYPICAL)


def find_typical_plans(runs: Sequence[Sequence[LoopPlan]]) -> tuple[LoopPlan, ...]:
    """At each decision the lower median of every field over the ``runs`` that go on, while ``GOING_ON`` of them do."""
    stacked = [stack_plans(plans, torch.float64) for plans in runs]
    found = []
    for decision in range(max(len(plans) for plans in runs)):
        columns = [plans[:, decision] for plans in stacked if plans.shape[1] > decision]
        if len(columns) < GOING_ON * len(runs):
            break
        found.append(torch.stack(columns, dim=1).median(dim=1, keepdim=True).values)
    return tuple(unstack_plans(torch.cat(found, dim=1)))
