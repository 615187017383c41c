"""Entrants: who takes part in an evaluation, and who controls their runs."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from loopwright.agents.controllers.competitors import COMPETITORS, find_competitor
from loopwright.agents.controllers.optimizers import Optimized
from loopwright.agents.controllers.policy import Policy
from loopwright.agents.controllers.simple import scale_rate
from loopwright.agents.controllers.tuned import (
    DEFAULT_ADAMW,
    TUNED_LISTS,
    make_default_adamw,
    read_tuned,
    restore_controller,
)
from loopwright.agents.judging.evaluation import ORACLE
from loopwright.agents.judging.runner import Job
from loopwright.envs.episode.calibration import StaticConfiguration
from loopwright.envs.loop.controller import Controller, Described, View
from loopwright.envs.loop.errors import LoopwrightError, UncalibratedTaskError
from loopwright.envs.loop.plan import LoopPlan
from loopwright.inner_tasks.task import Task

AGENT = "agent"
SELF_TUNING = "self-tuning"  # the group of competitors that need no learning rate
RATE_SETTINGS = ("lr", "adamw_lr")
BASIC = ("constant", "warm-up cosine", "plateau")  # what ``competitors`` may be, besides "all" and a list of names


@dataclass(frozen=True)
class Entrant:
    """A method under evaluation: its name and group, and who controls its runs on a task, one for each training."""

    name: str
    group: str
    trainings: tuple[Callable[[Task], Controller], ...]

    def jobs(self, tasks: Iterable[Task], seeds: Sequence[int], traced: int, rate_spread: float = 0.0) -> list[Job]:
        """All its runs; of the first training and so many seeds with their traces.

        With a ``rate_spread`` every run starts from another learning rate (``find_factor``).
        """
        spread = [find_factor(seed, rate_spread) for seed in seeds]
        return [
            Job(scale_start(controller, factor), task, seed, training, training == 0 and position < traced)
            for task in tasks
            for training, make in enumerate(self.trainings)
            for controller in [make(task)]
            for position, (seed, factor) in enumerate(zip(seeds, spread, strict=True))
        ]


def find_factor(seed: int, rate_spread: float) -> float:
    """10^U(-spread, spread): what the learning rates of all methods are multiplied by in the runs of one seed."""
    return 1.0 if rate_spread == 0 else float(10 ** np.random.default_rng(seed).uniform(-rate_spread, rate_spread))


def scale_start(controller: Controller, factor: float) -> Controller:
    """The controller with ``factor`` times the learning rate it was tuned to; what needs none is left as it is."""
    own: Any = controller
    competitor = COMPETITORS.get(controller.name)
    if factor == 1.0 or isinstance(controller, Static) or (competitor and competitor.group == SELF_TUNING):
        return controller
    if isinstance(controller, Optimized):
        scaled = {
            name: value * factor if name in RATE_SETTINGS else value for name, value in controller.settings.items()
        }
        return replace(controller, settings=scaled)
    start = replace(own.start, learning_rate=own.start.learning_rate * factor)
    changed: Controller = replace(own, start=start)
    return changed


def group_trainings(controllers: Sequence[Controller]) -> list[Entrant]:
    """Policies trained alike but for the seed are trainings of one method, other controllers those with one name.

    The first one's method is called "agent", whatever its name was. Raises ``LoopwrightError`` where there is none, or
    one twice.
    """
    if not controllers:
        raise LoopwrightError("give at least one policy to evaluate")
    if len({controller.fingerprint for controller in controllers}) < len(controllers):
        raise LoopwrightError("a policy was given twice: it would count as two trainings")
    methods: dict[tuple[Any, ...], list[Any]] = {}
    for controller in controllers:
        methods.setdefault(describe_method(controller), []).append(controller)
    labels = Counter(_label(members[0]) for members in methods.values())
    found: list[Entrant] = []
    for number, members in enumerate(methods.values()):
        label = _label(members[0])
        if labels[label] > 1:
            label += f", {number + 1}"
        name = AGENT if number == 0 else f"{AGENT} ({label})"
        own = tuple(give_always(replace(member, name=name)) for member in members)
        found.append(Entrant(name, "agent" if number == 0 else "ablation", own))
    return found


def _label(controller: Controller) -> str:
    if not isinstance(controller, Policy):
        return controller.name
    hidden = controller.training.get("hidden", ())
    return f"{controller.knobs.name}, without {', '.join(hidden)}" if hidden else controller.knobs.name


def describe_method(controller: Controller) -> tuple[Any, ...]:
    """What independent trainings of one method have in common."""
    if not isinstance(controller, Policy):
        return (controller.name,)
    made = {name: value for name, value in controller.training.items() if name not in ("seed", "members")}
    return (
        controller.knobs.name, controller.knobs.action, controller.squashed, controller.start,
        str(controller.network), json.dumps(made, sort_keys=True),
    )  # fmt: skip


def give_always(controller: Controller) -> Callable[[Task], Controller]:
    return lambda task: controller


@dataclass(frozen=True)
class Static(Described):
    """A configuration of the search that set a task's target: its plan and its cosine schedule."""

    configuration: StaticConfiguration
    decisions: int
    name: str = "static"

    @property
    def start(self) -> LoopPlan:
        return self.configuration.plan

    def decide(self, view: View) -> torch.Tensor:
        factors = [self.configuration.rate_factor(int(decision), self.decisions) for decision in view.decisions]
        return scale_rate(self.start, torch.tensor(factors), view)


def make_oracle(task: Task) -> Controller:
    """The best of the 64 static configurations that the task's target was made of: nobody could have known it."""
    winner = task.calibration.winner if task.calibration else None
    if winner is None:
        raise UncalibratedTaskError(
            f"task {task.name}: the configuration that set its target was not kept; run: "
            f"loopwright calibrate --again --tasks {task.name}"
        )
    assert task.calibration is not None
    return Static(StaticConfiguration.from_json(winner), task.calibration.decisions, ORACLE)


def expand_competitors(competitors: str | Sequence[str]) -> list[str]:
    """ "all", "basic", or names of ``COMPETITORS``; raises ``UnknownNameError`` for others."""
    if competitors == "all":
        return list(COMPETITORS)
    names = BASIC if competitors == "basic" else [competitors] if isinstance(competitors, str) else competitors
    return [find_competitor(name).name for name in names]


def list_rivals(names: Sequence[str], prices: str = TUNED_LISTS[0]) -> list[Entrant]:
    """PyTorch's default AdamW and the competitors as tuned under a price list.

    Raises ``LoopwrightError`` for one that was not tuned yet.
    """
    entries = read_tuned(prices)
    missing = [name for name in names if name not in entries]
    if missing:
        raise LoopwrightError(f"not tuned yet: {', '.join(missing)}; run: loopwright tune")
    found = [Entrant(DEFAULT_ADAMW, "fixed default", (give_always(make_default_adamw()),))]
    for name in names:
        controller = restore_controller(name, entries[name]["settings"])
        found.append(Entrant(name, find_competitor(name).group, (give_always(controller),)))
    return found
