"""EpisodeBatch: inner runs with a budget and a target, advanced one decision at a time. The core of every environment.

A batch owns the lanes of one shape, charges what they cost, lets the guard restore what diverged, evaluates the target
split after every decision, pays the reward and says how an episode ended. It takes *plans*, so schedules and learned
policies go through the same code; ``KnobSet`` turns an agent's action into a plan first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loopwright.envs.engine.cost import measure_cost
from loopwright.envs.engine.lane_state import COUNTERS
from loopwright.envs.engine.lanes import Lanes
from loopwright.envs.engine.library_lanes import LibraryLanes
from loopwright.envs.engine.randomness import draw_control_samples
from loopwright.envs.engine.serial_lanes import SerialLanes
from loopwright.envs.episode.budget import Budget
from loopwright.envs.episode.decision import DIVERGED, HIT, MISS, OUTCOMES, RUNNING, Decision, Step
from loopwright.envs.episode.hold_rule import HoldRule
from loopwright.envs.episode.progress import ProgressMeter
from loopwright.envs.episode.recorder import Recorder
from loopwright.envs.episode.reward import Judgement, find_reward
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.episode.snapshots import BestStates, LaneSnapshots
from loopwright.envs.episode.start import Start
from loopwright.envs.loop.averages import Mask
from loopwright.envs.loop.context import Context
from loopwright.envs.loop.errors import LoopwrightError, UncalibratedTaskError
from loopwright.envs.loop.guard import FINE, RATE_FACTOR, VERDICTS, Guard
from loopwright.envs.loop.observation import OBSERVATION_NAMES, Needs
from loopwright.envs.loop.observer import Observer, Reading
from loopwright.envs.loop.plan import OPTIMIZERS, ROW, LoopPlan, name_rows, stack_plans, unstack_plans
from loopwright.envs.loop.telemetry import WINDOW, Statistics, Telemetry, summarise
from loopwright.inner_tasks.task import Calibration, Task

SERIAL = 16  # lanes: so many, not compiled, are faster one after the other than in a batch


class EpisodeBatch:
    """``lanes`` episodes of tasks of one shape.

    Args:
        template: any task of the shape.
        lanes: how many episodes run side by side.
        settings: see ``EpisodeSettings``.
        needs: what the controller is shown, and charged for.
        rolls_back: whether plans may ask for a rollback; if not, the best states are not kept.
        library: whether optimizers of other libraries make the updates; the guard, which does not know their state,
            is then off.
        recorder: keeps the audit logs, or None.

    Attributes:
        plans: what the next decision starts from, ``[len(PLAN_FIELDS), lanes]``; the guard's halvings are in it.
        observation: what there is to see before it, ``[lanes, len(OBSERVATION_NAMES)]``.
        budget: geq spent and allowed.
        hit: whether and at what cost the target was held.
    """

    def __init__(
        self,
        template: Task,
        lanes: int,
        settings: EpisodeSettings,
        *,
        needs: Needs = Needs.OBSERVATION,
        rolls_back: bool = False,
        library: bool = False,
        recorder: Recorder | None = None,
    ) -> None:
        settings = replace(settings, compile=settings.compiles(lanes), guard=0 if library else settings.guard)
        self.settings, self.needs, self.recorder = settings, needs, recorder
        options: dict[str, Any] = {
            "microbatch": settings.microbatch, "compile": settings.compile, "device": settings.device,
        }  # fmt: skip
        serial = lanes <= SERIAL and not settings.compile and settings.device == "cpu"
        self.lanes: Lanes = (LibraryLanes if library else SerialLanes if serial else Lanes)(template, lanes, **options)
        self.setup = {
            "settings": settings.as_json(), "lanes": lanes, "threads": torch.get_num_threads(), "needs": needs.value,
            "rolls_back": rolls_back, "engine": type(self.lanes).__name__, "window": WINDOW,
        }  # fmt: skip
        look = measure_cost(template.model).look(min(settings.control_batch, len(template.control)))
        self._price_of_look = look if needs.looks else 0.0
        self._looks = torch.zeros(lanes, dtype=torch.float64)  # what a look costs each, 0 without a control split
        self._prices = torch.zeros(len(OPTIMIZERS), lanes, dtype=torch.float64)  # geq of an update
        self.tasks: list[Task | None] = [None] * lanes
        self.plans = stack_plans([LoopPlan()] * lanes)
        self.observation = torch.zeros(lanes, len(OBSERVATION_NAMES))
        self.budget, self.hit = Budget(lanes), HoldRule(lanes)
        self.guard = None
        if settings.guard:
            slots = LaneSnapshots(self.lanes), LaneSnapshots(self.lanes)
            self.guard = Guard(slots, lanes, settings.guard)
        self._best_states = BestStates(self.lanes) if rolls_back else None
        self._observer = Observer(lanes)
        self._shown = np.array([name in needs.names for name in OBSERVATION_NAMES])
        self._progress, self._phi = ProgressMeter(lanes), torch.zeros(lanes)
        self._reward = find_reward(settings.reward)
        self._live, self._open = (torch.zeros(lanes, dtype=torch.bool) for _ in range(2))

    @property
    def live(self) -> torch.Tensor:
        """The lanes whose episode has begun and not ended, a mask."""
        return self._live.clone()

    @property
    def rate_scale(self) -> torch.Tensor:
        """The product of the guard's halvings of the learning rate, ``[lanes]``."""
        return torch.ones(len(self.tasks)) if self.guard is None else torch.from_numpy(self.guard.rate_scale)

    def begin(self, lanes: Sequence[int], starts: Sequence[Start]) -> None:
        """Start episodes in ``lanes``. Raises ``UncalibratedTaskError`` for a task without a target."""
        index, tasks = torch.tensor(list(lanes)), [start.task for start in starts]
        calibrations = [_calibration_of(task) for task in tasks]
        prices = [self._quote(start) for start in starts]
        targets = torch.tensor([c.target for c in calibrations])
        scale = [self._price_calibration(c, own) for c, own in zip(calibrations, prices, strict=True)]
        factors = [start.open_budget or self.settings.budget_factor for start in starts]
        budgets = torch.tensor([c.cost for c in calibrations]).double() * torch.tensor(factors, dtype=torch.float64)
        budgets *= torch.tensor(scale, dtype=torch.float64)
        self.lanes.load(lanes, tasks, [start.seed for start in starts])
        for lane, start, own in zip(lanes, starts, prices, strict=True):
            self.tasks[lane] = start.task
            by = [start.updates_by or name for name in OPTIMIZERS]
            self._prices[:, lane] = torch.tensor([own[name] for name in by], dtype=torch.float64)
            self._open[lane] = start.open_budget > 0
            self._looks[lane] = 0.0 if "control" in start.withheld else self._price_of_look
        self.plans[:, index] = stack_plans([start.plan for start in starts])
        self.budget.begin(index, budgets, self._looks[index])
        self.hit.begin(index, targets)
        self._progress.begin(lanes, calibrations)
        self._phi[index], self._live[index] = 0.0, True
        control_loss = self._measure_control()
        seen = self._looks[index] > 0
        if self.guard is not None:
            unknown = self.needs.looks & ~seen
            self.guard.begin(index.numpy(), torch.where(unknown, torch.inf, control_loss[index]).numpy())
        if self._best_states is not None:
            self._best_states.begin(index, torch.where(seen, control_loss[index].log(), torch.inf).numpy())
        if self.needs.looks:
            contexts = [
                Context(
                    target=calibration.target, budget=budget, parameters=self.lanes.layout.parameters,
                    samples=start.task.distinct_samples, prices=own, microbatch=self.settings.microbatch,
                ).without(start.withheld)
                for start, calibration, budget, own in zip(starts, calibrations, budgets.tolist(), prices, strict=True)
            ]  # fmt: skip
            self._observer.begin(lanes, control_loss[index].numpy(), contexts)
            nobody = np.zeros(len(self.tasks), bool)
            self.observation[index] = self._observe(None, control_loss, trained=nobody, restored=nobody)[index]
        if self.recorder is not None:
            executed = unstack_plans(self.plans[:, index])  # to float32 precision
            for lane, start, plan, own in zip(lanes, starts, executed, prices, strict=True):
                begun = start._replace(plan=plan, prices=own)
                self.recorder.begin(lane, begun, float(self.budget.total[lane]), self.setup)

    def _quote(self, start: Start) -> Mapping[str, float]:
        """The prices of an episode."""
        if start.prices is not None:
            return start.prices
        names = [*OPTIMIZERS, start.updates_by] if start.updates_by else OPTIMIZERS
        return self.settings.price_list.quote(start.task.model, self.settings.microbatch, names)

    def _price_calibration(self, calibration: Calibration, prices: Mapping[str, float]) -> float:
        """What the updates of the calibrated configuration multiply its cost by."""
        winner = LoopPlan().as_json() | dict(calibration.winner or {})
        return 1 + prices[str(winner["optimizer"])] / (self.settings.microbatch * float(winner["batch"]))

    def end(self, lanes: Sequence[int]) -> None:
        """Break off the episodes in ``lanes``: what these lanes do from now on is nobody's, and not on record."""
        self._live[list(lanes)] = False
        if self.recorder is not None:
            self.recorder.end(lanes)

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
        statistics = self._train(plans)
        with np.errstate(all="ignore"):
            telemetry = summarise(statistics, plans[ROW["clip"]].numpy(), self._observer.arithmetic)
        control_loss = self._measure_control() if self.needs.looks else torch.zeros(len(self.tasks))
        verdict, given_up = self._watch(statistics.finite, telemetry, plans, control_loss)
        loss, metric = (value.cpu() for value in self.lanes.evaluate("target"))
        self._see(telemetry, control_loss, (verdict == FINE).numpy())
        decision = self._judge(loss, metric, verdict, given_up)
        self._live &= ~decision.done
        if self.recorder is not None:
            step = Step(seen, found, actions, plans, telemetry, decision)
            self.recorder.record(step, self.describe(decision), self.needs)
        return decision

    def describe(self, decision: Decision) -> dict[str, list[Any]]:
        """Where every lane stands after ``decision``, as lists ``[lanes]`` of plain values by name."""
        outcomes, verdicts = decision.outcome.tolist(), decision.verdict.tolist()
        return {
            "task": [None if task is None else task.name for task in self.tasks],
            "cost": self.budget.cost.tolist(),
            "budget": self.budget.total.tolist(),
            "loss": decision.loss.tolist(),
            "metric": decision.metric.tolist(),
            "outcome": [OUTCOMES[code] for code in outcomes],
            "outcome_code": outcomes,
            "verdict": [VERDICTS[code] for code in verdicts],
            "verdict_code": verdicts,
        }

    def _roll_back(self, asked: torch.Tensor) -> None:
        if not asked.any():
            return
        if self._best_states is None:
            raise LoopwrightError("a plan asks for a rollback, but this batch was made with rolls_back=False")
        self._best_states.restore(asked)
        if self.guard is not None:
            self.guard.rolled_back(asked.numpy())

    def _train(self, plans: torch.Tensor) -> Statistics:
        """Run the ticks of a decision and charge them; what was measured."""
        statistics = self.lanes.run(plans, self.settings.ticks_per_decision)
        cost, updates = (torch.from_numpy(statistics.total(name)).double() for name in ("cost", "updates"))
        price = self._prices.gather(0, plans[ROW["optimizer"]].long()[None])[0]
        self.budget.charge(cost + updates * price, self._looks)
        self.plans = plans.clone()
        return statistics

    def _watch(
        self, finite: Mask, telemetry: Telemetry, plans: torch.Tensor, control_loss: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The guard's verdict, and which runs it gives up."""
        if self.guard is None:
            return torch.full((len(self.tasks),), FINE), torch.zeros(len(self.tasks), dtype=torch.bool)
        with np.errstate(all="ignore"):
            known = torch.where(self._looks > 0, control_loss, 0.0).numpy()
            verdict, given_up = map(torch.from_numpy, self.guard.watch(finite, telemetry, name_rows(plans), known))
        self.plans[ROW["learning_rate"], verdict != FINE] *= RATE_FACTOR
        return verdict, given_up

    def _see(self, telemetry: Telemetry, control_loss: torch.Tensor, fine: Mask) -> None:
        """What the controller is shown, what was paid for included; keep the best states by what it may know."""
        known = telemetry["loss"]
        if self.needs.looks:
            trained = np.ones(len(self.tasks), bool)
            control_loss = control_loss if fine.all() else self._measure_control()  # of what was restored
            self.observation = self._observe(telemetry, control_loss, trained=trained, restored=~fine)
            known = self._observer.log_loss
        if self._best_states is not None:
            self._best_states.keep(known, fine)

    def _judge(
        self, loss: torch.Tensor, metric: torch.Tensor, verdict: torch.Tensor, given_up: torch.Tensor
    ) -> Decision:
        """Who has hit the target, missed it or diverged, and what the decision is worth."""
        hit = self.hit.see(loss, self.budget.cost)
        # With a guard it is for the guard to say so: weights that exploded in the last tick show at the next.
        diverged = (given_up if self.guard is not None else ~torch.isfinite(loss)) & ~hit
        missed = self.budget.exhausted & ~hit & ~diverged
        outcome = torch.where(hit, HIT, torch.where(diverged, DIVERGED, torch.where(missed, MISS, RUNNING)))
        phi, bill = torch.where(hit, 1.0, self._progress.see(loss)), self.budget.bill()
        credit = torch.where(missed & self._open, phi, 0.0)
        reward = self._reward(
            Judgement(self._phi, phi, bill.share, bill.spent, hit, missed, diverged, credit, self.settings.discount)
        )
        self._phi = phi
        return Decision(reward, outcome, verdict, loss, metric)

    def _measure_control(self) -> torch.Tensor:
        """The loss on the next control batch, ``[lanes]``."""
        lanes = self.lanes
        key, ticks = lanes.state.counters[:2]
        size = lanes.splits["control"][1].shape[1]
        index = draw_control_samples(key, ticks, min(self.settings.control_batch, size), size)
        return lanes.evaluate("control", index)[0].cpu()

    def _observe(
        self, telemetry: Telemetry | None, control_loss: torch.Tensor, *, trained: Mask, restored: Mask
    ) -> torch.Tensor:
        guard_left = 0.0 if self.guard is None else 1 - self.guard.interventions / self.guard.limit
        cursor = self.lanes.state.counters[COUNTERS.index("cursor")].cpu().numpy()
        reading = Reading(
            telemetry, control_loss.numpy(), name_rows(self.plans), self.budget.left.numpy(), trained, restored,
            guard_left, (cursor + 1) * np.float32(self.settings.microbatch),
        )  # fmt: skip
        with np.errstate(all="ignore"):
            return torch.from_numpy(self._observer.observe(reading) * self._shown)


def _calibration_of(task: Task) -> Calibration:
    if task.calibration is None:
        raise UncalibratedTaskError(
            f"task {task.name} has no calibrated target; use loopwright.calibrate(task), or the command: loopwright "
            f"calibrate"
        )
    return task.calibration
