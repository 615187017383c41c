"""Episodes: inner runs with a budget and a target, advanced one decision at a time. The core of every environment.

An ``EpisodeBatch`` owns the lanes of one shape, charges what they cost, lets the guard restore what diverged, evaluates
the target split after every decision, pays the reward, writes the ledgers and says how an episode ended. It takes
*plans*, so schedules and learned policies go through the same code; ``knobs.KnobSet`` turns an agent's action into a
plan first.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loopwright.envs.cost import measure_cost
from loopwright.envs.guard import FINE, RATE_FACTOR, VERDICTS, Guard, Snapshots
from loopwright.envs.lanes import Lanes
from loopwright.envs.ledger import Author, Recorder, named_observation
from loopwright.envs.observation import OBSERVATION_NAMES, Needs, Observer
from loopwright.envs.plan import ROW, LoopPlan, stack_plans, unstack_plans
from loopwright.envs.randomness import control_indices
from loopwright.envs.reward import Judgement, ProgressMeter, reward_function
from loopwright.envs.telemetry import SUMS, Telemetry, summarise
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
        reward: what a decision earns: "progress", "time" or "anytime" (``envs.reward``).
        guard: interventions of the guard per episode; 0 switches it off, and divergence then ends the episode.
        discount: the agent's discount per decision, in (0, 1], which the shaping in "progress" takes into account.
        compile: fuse the tick with ``torch.compile``.
        device: where the lanes live.
    """

    microbatch: int = 16
    ticks_per_decision: int = 16
    control_batch: int = 16
    budget_factor: float = 3.0
    reward: str = "progress"
    guard: int = 5
    discount: float = 1.0
    compile: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("microbatch", 1), ("ticks_per_decision", 1), ("control_batch", 1), ("guard", 0)):
            if getattr(self, name) < least:
                raise LoopwrightError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if not 0 < self.budget_factor < math.inf:
            raise LoopwrightError(f"budget_factor must be finite and above 0, got {self.budget_factor}")
        if not 0 < self.discount <= 1:
            raise LoopwrightError(f"discount must lie in (0, 1], got {self.discount}")
        reward_function(self.reward)  # raises for an unknown name


@dataclass(frozen=True)
class Decision:
    """What one decision brought, each ``[lanes]``: reward, outcome and verdict codes, target loss and metric."""

    reward: torch.Tensor
    outcome: torch.Tensor
    verdict: torch.Tensor
    loss: torch.Tensor
    metric: torch.Tensor

    @property
    def done(self) -> torch.Tensor:
        return self.outcome != RUNNING


def no_decision(lanes: int) -> Decision:
    """What lanes bring in which nothing runs."""
    nothing = torch.full((lanes,), math.nan)
    return Decision(torch.zeros(lanes), torch.full((lanes,), RUNNING), torch.full((lanes,), FINE), nothing, nothing)


class EpisodeBatch:
    """``lanes`` episodes of tasks of one shape.

    Args:
        template: any task of the shape.
        lanes: how many episodes run side by side.
        settings: see ``EpisodeSettings``.
        needs: what the controller is shown, and charged for.
        rolls_back: whether plans may ask for a rollback; if not, the best states are not kept.
        ledgers: folder for the audit log of every episode, or None.
        author: who decides, for the ledgers.
        engine: ``Lanes``, or what trains in its place.

    Attributes:
        plans: what the next decision starts from, ``[len(PLAN_FIELDS), lanes]``; the guard's halvings are in it.
        observation: what there is to see before it, ``[lanes, len(OBSERVATION_NAMES)]``.
        cost, budget: geq spent and allowed, ``[lanes]`` float64.
        hit_cost: geq at the first of two evaluations in a row at or below the target, NaN before.
    """

    def __init__(
        self,
        template: Task,
        lanes: int,
        settings: EpisodeSettings,
        *,
        needs: Needs = Needs.OBSERVATION,
        rolls_back: bool = False,
        ledgers: Path | None = None,
        author: Author | None = None,
        engine: type[Lanes] = Lanes,
    ) -> None:
        self.settings, self.needs = settings, needs
        self.lanes = engine(
            template, lanes, microbatch=settings.microbatch, compile=settings.compile, device=settings.device
        )
        self.unit = measure_cost(template.model)
        self._look = self.unit.look(min(settings.control_batch, len(template.control))) if needs.looks else 0.0
        self.tasks: list[Task | None] = [None] * lanes
        self.plans = stack_plans([LoopPlan()] * lanes)
        self.observation = torch.zeros(lanes, len(OBSERVATION_NAMES))
        self.guard = Guard(self.lanes, settings.guard) if settings.guard else None
        self._best_states = Snapshots(self.lanes) if rolls_back else None
        self._best_seen = torch.full((lanes,), math.inf)  # the loss at which those were taken
        self._observer = Observer(lanes)
        self._progress = ProgressMeter(lanes)
        self._reward = reward_function(settings.reward)
        self._shown = torch.tensor([name in needs.names for name in OBSERVATION_NAMES])
        made = {
            "lanes": lanes, "threads": torch.get_num_threads(), "needs": needs.value, "rolls_back": rolls_back,
            "engine": engine.__name__,
        }  # fmt: skip
        self._recorder = (
            Recorder(ledgers, author or Author(), {"settings": asdict(settings), **made}) if ledgers else None
        )
        self.cost = torch.zeros(lanes, dtype=torch.float64)
        self.budget = torch.ones(lanes, dtype=torch.float64)
        self.hit_cost = torch.full((lanes,), math.nan, dtype=torch.float64)
        self._charged = torch.zeros(lanes, dtype=torch.float64)  # what rewards have been charged for so far
        self._target = torch.zeros(lanes)
        self._phi = torch.zeros(lanes)
        self._best = torch.full((lanes,), math.inf)
        self._below = torch.zeros(lanes, dtype=torch.bool)
        self._live = torch.zeros(lanes, dtype=torch.bool)

    @property
    def live(self) -> torch.Tensor:
        """The lanes whose episode has begun and not ended, a mask."""
        return self._live.clone()

    @property
    def rate_scale(self) -> torch.Tensor:
        """The product of the guard's halvings of the learning rate, ``[lanes]``."""
        return torch.ones(len(self.tasks)) if self.guard is None else self.guard.rate_scale

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
        self._charged[index] = 0.0
        self.hit_cost[index] = math.nan
        self._phi[index] = 0.0
        self._best[index] = self._best_seen[index] = math.inf
        self._below[index] = False
        self._live[index] = True
        begun = torch.zeros(len(self.tasks), dtype=torch.bool)
        begun[index] = True
        start_loss = self._control_loss()[index]
        if self.guard is not None:
            self.guard.begin(index, start_loss)
        if self._best_states is not None:
            self._best_states.save(begun)
        if self.needs.looks:
            self._observer.begin(lanes, start_loss, [c.target for c in calibrations])
            neither = torch.zeros_like(begun)  # trained nor restored
            self.observation[index] = self._observe(None, self._target, neither, neither)[index]
        if self._recorder is not None:
            # As they are executed, which is to float32 precision.
            starts = unstack_plans(self.plans[:, index])
            for lane, task, seed, start in zip(lanes, tasks, seeds, starts, strict=True):
                self._recorder.begin(lane, task, seed, start, float(self.budget[lane]))

    def end(self, lanes: Sequence[int]) -> None:
        """Break off the episodes in ``lanes``: what these lanes do from now on is nobody's, and not on record."""
        self._live[list(lanes)] = False
        if self._recorder is not None:
            self._recorder.end(lanes)

    def step_ratio(self) -> torch.Tensor:
        """What a switch of optimizer multiplies or divides the learning rate by (``KnobSet.move``), ``[lanes]``."""
        return self.lanes.step_ratio().cpu()

    def decide(self, plans: torch.Tensor, actions: npt.NDArray[np.generic] | None = None) -> Decision:
        """Train every lane for one decision under ``plans [len(PLAN_FIELDS), lanes]`` and judge the result.

        ``actions [lanes, knobs]`` are what the plans came from, for the ledger. Raises ``LoopwrightError`` for a plan
        that rolls back in a batch that keeps no best states.
        """
        seen, found = self.observation, self.plans
        self._roll_back(plans[ROW["rollback"]] > 0)
        sums = self.lanes.run(plans, self.settings.ticks_per_decision).cpu()
        telemetry = summarise(sums)
        self.cost = torch.minimum(self.cost + sums[SUMS.index("cost")].double() + self._look, self.budget)
        self.plans = plans.clone()
        verdict = torch.full((len(self.tasks),), FINE)
        given_up = torch.zeros(len(self.tasks), dtype=torch.bool)
        if self.guard is not None:
            verdict, given_up = self.guard.watch(sums, telemetry, plans)
            self.plans[ROW["learning_rate"], verdict != FINE] *= RATE_FACTOR
        loss, metric = (value.cpu() for value in self.lanes.evaluate("target"))
        control_loss = self._control_loss() if self.needs.looks else telemetry.loss
        if self.needs.looks:
            trained = torch.ones(len(self.tasks), dtype=torch.bool)
            self.observation = self._observe(telemetry, control_loss, trained, verdict != FINE)
        self._keep_best(control_loss, verdict == FINE)
        decision = self._judge(loss, metric, verdict, given_up)
        self._live &= ~decision.done
        if self._recorder is not None:
            self._record(found, plans, actions, seen, telemetry, decision)
        return decision

    def _judge(
        self, loss: torch.Tensor, metric: torch.Tensor, verdict: torch.Tensor, given_up: torch.Tensor
    ) -> Decision:
        below = loss <= self._target
        first = below & ~self._below
        self.hit_cost = torch.where(first, self.cost, torch.where(below, self.hit_cost, math.nan))
        hit = below & self._below
        self._below = below
        # With a guard it is for the guard to say so: weights that exploded in the last tick show at the next.
        diverged = (given_up if self.guard is not None else ~torch.isfinite(loss)) & ~hit
        missed = (self.cost >= self.budget * (1 - 1e-6)) & ~hit & ~diverged
        outcome = torch.where(hit, HIT, torch.where(diverged, DIVERGED, torch.where(missed, MISS, RUNNING)))

        self._best = torch.minimum(self._best, torch.nan_to_num(loss, nan=math.inf))
        phi = torch.where(hit, 1.0, self._progress.phi(self._best))
        spent, share = self.cost / self.budget, (self.cost - self._charged) / self.budget
        reward = self._reward(
            Judgement(self._phi, phi, share.float(), spent.float(), hit, missed, diverged, self.settings.discount)
        )
        self._phi, self._charged = phi, self.cost.clone()
        return Decision(reward, outcome, verdict, loss, metric)

    def _roll_back(self, asked: torch.Tensor) -> None:
        if not asked.any():
            return
        if self._best_states is None:
            raise LoopwrightError("a plan asks for a rollback, but this batch was made with rolls_back=False")
        self._best_states.restore(asked)
        if self.guard is not None:
            self.guard.rolled_back(asked)

    def _keep_best(self, loss: torch.Tensor, fine: torch.Tensor) -> None:
        """Keep the states of lowest loss that the controller may know of: of control and training, or of training."""
        if self._best_states is not None:
            known = self._observer.level if self.needs.looks else loss
            better = fine & (known < self._best_seen)
            self._best_seen = torch.where(better, known, self._best_seen)
            self._best_states.save(better)

    def _control_loss(self) -> torch.Tensor:
        lanes = self.lanes
        key, ticks = lanes.state.counters[:2]
        size = lanes.splits["control"][1].shape[1]
        index = control_indices(key, ticks, min(self.settings.control_batch, size), size)
        return lanes.evaluate("control", index)[0].cpu()

    def _observe(
        self, telemetry: Telemetry | None, control_loss: torch.Tensor, trained: torch.Tensor, restored: torch.Tensor
    ) -> torch.Tensor:
        left = (1 - self.cost / self.budget).clamp(0, 1).float()
        guard_left = None if self.guard is None else 1 - self.guard.interventions / self.guard.limit
        seen = self._observer.observe(telemetry, control_loss, self.plans, left, trained, restored, guard_left)
        return torch.where(self._shown, seen, 0.0)

    def _record(
        self,
        found: torch.Tensor,
        plans: torch.Tensor,
        actions: npt.NDArray[np.generic] | None,
        seen: torch.Tensor,
        telemetry: Telemetry,
        decision: Decision,
    ) -> None:
        """One line for every lane's ledger."""
        assert self._recorder is not None
        before, chosen = unstack_plans(found), unstack_plans(plans)
        for lane in self._recorder.lanes:
            entry = {
                "observation": named_observation(seen[lane], self.needs),
                "action": None if actions is None else np.asarray(actions)[lane].tolist(),
                "plan_before": before[lane].as_json(),
                "plan": chosen[lane].as_json(),
                "telemetry": {field.name: float(getattr(telemetry, field.name)[lane]) for field in fields(Telemetry)},
                "reward": float(decision.reward[lane]),
                **lane_result(self, lane, decision),
            }
            self._recorder.decision(lane, entry, bool(decision.done[lane]))


def lane_result(episode: EpisodeBatch, lane: int, decision: Decision | None) -> dict[str, Any]:
    """Where a lane stands after a decision, or, with None, at the start of its episode."""
    return {
        "cost": float(episode.cost[lane]),
        "loss": None if decision is None else float(decision.loss[lane]),
        "metric": None if decision is None else float(decision.metric[lane]),
        "outcome": OUTCOMES[RUNNING if decision is None else int(decision.outcome[lane])],
        "verdict": VERDICTS[FINE if decision is None else int(decision.verdict[lane])],
    }
