"""Episodes: inner runs with a budget and a target, advanced one decision at a time. The core of every environment.

An ``EpisodeBatch`` owns the lanes of one shape, charges what they cost, evaluates the target split after every
decision, pays the reward and says how an episode ended. It takes *plans*, so schedules and learned policies go through
the same code; ``knobs.KnobSet`` turns an agent's action into a plan first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from loopwright.envs.cost import measure_cost
from loopwright.envs.lanes import Lanes
from loopwright.envs.observation import OBSERVATION_NAMES, Observer
from loopwright.envs.plan import LoopPlan, stack_plans
from loopwright.envs.randomness import control_indices
from loopwright.envs.reward import ProgressMeter
from loopwright.envs.telemetry import Telemetry, summarise
from loopwright.inner_tasks.errors import LoopwrightError, UncalibratedTaskError
from loopwright.inner_tasks.task import Task

RUNNING, HIT, MISS, DIVERGED = range(4)
OUTCOMES = ("running", "hit", "miss", "diverged")


@dataclass(frozen=True)
class EpisodeSettings:
    """How an inner run is cut into decisions and what it may cost.

    Attributes:
        microbatch: samples per tick.
        ticks_per_decision: ticks under one plan.
        control_batch: samples of the control split looked at, and charged, per decision.
        budget_factor: the budget, in multiples of the task's calibrated cost to target C*.
        compile: fuse the tick with ``torch.compile``.
        device: where the lanes live.
    """

    microbatch: int = 16
    ticks_per_decision: int = 16
    control_batch: int = 16
    budget_factor: float = 3.0
    compile: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("microbatch", "ticks_per_decision", "control_batch"):
            if getattr(self, name) < 1:
                raise LoopwrightError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not 0 < self.budget_factor < math.inf:
            raise LoopwrightError(f"budget_factor must be finite and above 0, got {self.budget_factor}")


@dataclass(frozen=True)
class Decision:
    """What one decision brought, each ``[lanes]``: reward, outcome code, target-split loss and accuracy."""

    reward: torch.Tensor
    outcome: torch.Tensor
    loss: torch.Tensor
    accuracy: torch.Tensor

    @property
    def done(self) -> torch.Tensor:
        return self.outcome != RUNNING


class EpisodeBatch:
    """``lanes`` episodes of tasks of one shape.

    Args:
        template: any task of the shape.
        lanes: how many episodes run side by side.
        settings: see ``EpisodeSettings``.
        looks: whether the controller looks at the control split; if not, nothing is charged and nothing observed.
    """

    def __init__(self, template: Task, lanes: int, settings: EpisodeSettings, *, looks: bool = True) -> None:
        self.settings, self.looks = settings, looks
        self.lanes = Lanes(
            template, lanes, microbatch=settings.microbatch, compile=settings.compile, device=settings.device
        )
        self.unit = measure_cost(template.model)
        self._look = self.unit.look(min(settings.control_batch, len(template.control))) if looks else 0.0
        self.tasks: list[Task | None] = [None] * lanes
        self.plans = stack_plans([LoopPlan()] * lanes)
        self.observation = torch.zeros(lanes, len(OBSERVATION_NAMES))
        self._observer = Observer(lanes)
        self._progress = ProgressMeter(lanes)
        self.cost = torch.zeros(lanes, dtype=torch.float64)
        self.budget = torch.ones(lanes, dtype=torch.float64)
        self._billed = torch.zeros(lanes, dtype=torch.float64)  # what rewards have been charged for so far
        self.hit_cost = torch.full((lanes,), math.nan, dtype=torch.float64)
        self._target = torch.zeros(lanes)
        self._phi = torch.zeros(lanes)
        self._best = torch.full((lanes,), math.inf)
        self._below = torch.zeros(lanes, dtype=torch.bool)

    def begin(
        self, lanes: Sequence[int], tasks: Sequence[Task], seeds: Sequence[int], plans: Sequence[LoopPlan]
    ) -> None:
        """Start episodes in ``lanes``. Raises ``UncalibratedTaskError`` for a task without a target."""
        calibrations = []
        for task in tasks:
            if task.calibration is None:
                raise UncalibratedTaskError(
                    f"task {task.name} has no calibrated target; use envs.calibration.calibrate(task), "
                    f"or the command: loopwright calibrate"
                )
            calibrations.append(task.calibration)
        self.lanes.load(lanes, tasks, seeds)
        index = torch.tensor(list(lanes))
        for lane, task in zip(lanes, tasks, strict=True):
            self.tasks[lane] = task
        self.plans[:, index] = stack_plans(plans)
        self._progress.begin(lanes, calibrations)
        self.budget[index] = torch.tensor([c.cost for c in calibrations]).double() * self.settings.budget_factor
        self._target[index] = torch.tensor([c.target for c in calibrations])
        self.cost[index] = self._look
        self._billed[index] = 0.0
        self.hit_cost[index] = math.nan
        self._phi[index] = 0.0
        self._best[index] = math.inf
        self._below[index] = False
        if self.looks:
            self._observer.begin(lanes, self._control_loss()[index], [c.target for c in calibrations])
            fresh = torch.zeros(len(self.tasks), dtype=torch.bool)
            self.observation[index] = self._observe(None, self._target, fresh)[index]

    def decide(self, plans: torch.Tensor) -> Decision:
        """Train every lane for one decision under ``plans [len(PLAN_FIELDS), lanes]`` and judge the result."""
        self.plans = plans
        ticks = self.settings.ticks_per_decision
        sums = self.lanes.run(plans.to(self.lanes.device), ticks).cpu()
        spent = self.unit.training(ticks * self.settings.microbatch) + self._look
        self.cost = torch.minimum(self.cost + spent, self.budget)
        loss, accuracy = (value.cpu() for value in self.lanes.evaluate("target"))
        if self.looks:
            trained = torch.ones(len(self.tasks), dtype=torch.bool)
            self.observation = self._observe(summarise(sums), self._control_loss(), trained)

        below = loss <= self._target
        first = below & ~self._below
        self.hit_cost = torch.where(first, self.cost, torch.where(below, self.hit_cost, math.nan))
        hit = below & self._below
        self._below = below
        diverged = ~torch.isfinite(loss) & ~hit
        missed = (self.cost >= self.budget * (1 - 1e-6)) & ~hit & ~diverged
        outcome = torch.where(hit, HIT, torch.where(diverged, DIVERGED, torch.where(missed, MISS, RUNNING)))

        self._best = torch.minimum(self._best, torch.nan_to_num(loss, nan=math.inf))
        phi = torch.where(hit, 1.0, self._progress.phi(self._best))
        bill = torch.where(diverged, self.budget, self.cost)
        reward = (phi - self._phi) - ((bill - self._billed) / self.budget).float()
        self._phi, self._billed = phi, bill
        return Decision(reward, outcome, loss, accuracy)

    def _control_loss(self) -> torch.Tensor:
        lanes = self.lanes
        key, ticks = lanes.state.counters
        size = lanes.splits["control"][1].shape[1]
        index = control_indices(key, ticks, min(self.settings.control_batch, size), size)
        return lanes.evaluate("control", index)[0].cpu()

    def _observe(self, telemetry: Telemetry | None, control_loss: torch.Tensor, trained: torch.Tensor) -> torch.Tensor:
        left = (1 - self.cost / self.budget).clamp(0, 1).float()
        return self._observer.observe(telemetry, control_loss, self.plans, left, trained)
