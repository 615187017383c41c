"""Steering: a controller steers a user's own training loop, through hooks of its optimizer.

A decision is taken every so many updates, from the same statistics, by the same observation and the same policy as in
the environments. What it may set is what the optimizer has: ``groups`` says how each holds it.
"""

import math
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from loopwright.agents.controllers.policy import Policy
from loopwright.agents.steering.average import WeightAverage
from loopwright.agents.steering.defaults import choose_policy, make_context
from loopwright.agents.steering.groups import Groups
from loopwright.agents.steering.loader import SteeredLoader
from loopwright.agents.steering.loop_guard import LoopGuard
from loopwright.agents.steering.pace import COOLDOWN, Cooldown, Pace, find_spacing
from loopwright.agents.steering.processes import average_over_processes
from loopwright.agents.steering.record import SteeringRecord
from loopwright.agents.steering.restraint import Restraint
from loopwright.agents.steering.snapshots import OwnSettings, SlotFunction, make_slots
from loopwright.agents.steering.step_hooks import StepHooks, arrive_after_closure
from loopwright.agents.steering.stopwatch import make_stopwatch
from loopwright.agents.steering.warmup import make_warmup
from loopwright.agents.steering.watch import UpdateWatch, find_scale, read_numbers
from loopwright.envs.loop.checks import check_counts
from loopwright.envs.loop.clipping import clip_gradients
from loopwright.envs.loop.compiled_observer import CompiledObserver
from loopwright.envs.loop.context import check_prices
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.guard import FINE, VERDICTS
from loopwright.envs.loop.observer import Reading
from loopwright.envs.loop.plan import OPTIMIZERS, LoopPlan, name_column, stack_plans
from loopwright.envs.loop.telemetry import WINDOW, Statistics, Telemetry, summarise

_ATTACHED = "_loopwright_steering"
_Plan = dict[str, float]  # the fields of one, as numbers


class Steering:
    """A policy at the wheel of one loop.

    Args:
        optimizer: makes the updates; with parameter groups, whose ratios to one another stay.
        policy: a saved policy, a path to one, or the name of one that comes along; None: that for such an optimizer.
        steps: iterations there will be; None where that is open.
        cooldown: share of ``steps``, at their end, over which the learning rate that the policy chooses is taken to
            zero in a line (as in warm-up, stable, decay: Hu et al. 2024), 0 to 1; 0, or no ``steps``: it is not.
        warmup: iterations over which the learning rate climbs to what it is to be, 0 for none; None: ``make_warmup``'s.
        every: iterations between the first decisions, which come to lie further apart (``pace``); None takes what the
            policy was trained with.
        target: the loss on validation data that is to be reached; None where there is none.
        samples, batch_size: how many different samples there are to train on, and how many an update reads; the
            policy then knows how often it has seen them. None where that is not known.
        clip: threshold on the norm of the gradient to begin with; leave clipping to the steering.
        limits: lowest and highest value of a field of the plan, such as ``{"learning_rate": (1e-5, 1e-1)}``, beside
            those of ``defaults.find_limits``; {} frees all.
        guard: how often a run that diverges is brought back before the user's own settings take over; 0 is off.
        model: whose buffers (batch norm) are brought back and averaged with the weights; None leaves them alone.
        snapshots: functions that save and restore all that is trained, in slot 0 or 1; None keeps two copies of weights
            and optimizer state in memory.
        prices: passes over a microbatch that an update by each rule takes, by the rules' names. "measured" takes the
            time in the first decision; decisions then hang on it, and a second run may differ. None: it is not told.
        advise: only say what would be done (``plan``, and in the ledger), change nothing.
        ledger: file to keep an audit log in; None for none. Of several processes the first keeps it.

    Attributes:
        plan: the fields that hold now, by name, or with ``advise`` would.
        decisions: how many were taken.
        updates, iterations: how many were made; a PlanOptimizer may take several of the latter for one of the former.
        prices: passes over a microbatch that an update by each rule takes; None where that is not known, or not yet.
        stopped: why it has let go of the wheel, or None.

    Raises:
        LoopwrightError: an optimizer that is steered already or has no parameters; values that cannot be.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        policy: Policy | Path | str | None = None,
        steps: int | None = None,
        *,
        cooldown: float = COOLDOWN,
        warmup: int | None = None,
        every: int | None = None,
        target: float | None = None,
        samples: int | None = None,
        batch_size: int | None = None,
        clip: float = math.inf,
        limits: Mapping[str, tuple[float, float]] | None = None,
        guard: int = 3,
        model: nn.Module | None = None,
        snapshots: tuple[SlotFunction, SlotFunction] | None = None,
        prices: Mapping[str, float] | str | None = "measured",
        advise: bool = False,
        ledger: Path | str | None = None,
    ) -> None:
        if hasattr(optimizer, _ATTACHED):
            raise LoopwrightError("this optimizer is steered already; call detach() on the steering it has first")
        self.groups = Groups(optimizer)
        self.policy = choose_policy(policy, self.groups)
        self._pace = Pace(every or int(self.policy.training.get("settings", {}).get("ticks_per_decision", 16)))
        check_counts(steps=(steps, 1), guard=(guard, 0), every=(every, WINDOW), warmup=(warmup, 0))
        self.steps, self.advise = steps, advise
        self._own = OwnSettings(optimizer)
        self.plan = self.groups.read(name_column(stack_plans([LoopPlan(batch=1, clip=clip)]), 0))
        self._untouched = dict(self.plan)
        warm = make_warmup(0 if advise else warmup, self.groups, self._pace.first, steps)
        self._restraint = Restraint(limits, [k.field for k in self.policy.knobs.knobs], Cooldown(steps, cooldown), warm)
        self._restraint.meet(self.groups, self.plan)
        self._loader: SteeredLoader | None = None
        self._steered = self._find_steered()
        self.decisions = self.updates = self.iterations = 0
        self.stopped: str | None = None
        self._average = WeightAverage([] if model is None else model.buffers())
        self._observer = CompiledObserver()
        self._context = make_context(self.groups, target, steps, samples, batch_size)
        self._observer.begin([0], np.ones(1), [self._context])
        self._begin_prices(prices)
        self._guard = LoopGuard(make_slots(optimizer, model, snapshots), guard) if guard else None
        if self._guard is not None and not advise:
            self._guard.begin()
        self._record = SteeringRecord(ledger, self)
        self._control = math.nan
        self._seen, self._memory = self._observe(None, restored=False), self.policy.begin(1)
        self._watch, self._begun = UpdateWatch(), False
        self._begin_decision()
        self._hooks = StepHooks(optimizer, self._before_update, self._after_update)
        if self.groups.whole is not None:
            self._hooks.handles.append(self.groups.whole.register_update_hook(self._look_at_update))
        setattr(optimizer, _ATTACHED, self)

    def _meet_groups(self) -> None:
        """Take in the optimizer's groups, where others have come."""
        if len(self.groups.optimizer.param_groups) != self.groups.count:
            self.groups = Groups(self.groups.optimizer)
            self._restraint.meet(self.groups, self.plan)

    def _find_steered(self) -> list[bool]:
        """Of each knob of the policy, whether there is something it moves."""
        loaded = set() if self._loader is None else self._loader.fields
        return [knob.field in self.groups.settable | loaded for knob in self.policy.knobs.knobs]

    # What the user calls

    @property
    def every(self) -> int:
        """Iterations between this decision and the next."""
        return find_spacing(self._pace.first, self.decisions)

    def step(self, loss: torch.Tensor | float | None = None) -> None:
        """Once per iteration, after ``optimizer.step()``; ``loss`` is that of the batch, before any scaling.

        Or it is that of each of its samples, ``[batch_size]``, which a ``loader`` by loss goes by. Raises
        ``LoopwrightError`` without a loss.
        """
        if loss is None:
            raise LoopwrightError("step() needs the loss of the batch: steering.step(loss)")
        if self.stopped is not None:
            return
        loss = loss if isinstance(loss, torch.Tensor) else torch.as_tensor(loss)
        self._hooks.reset()
        if self._loader is not None:
            self._loader.take_losses(loss)
        self._losses.append(loss.detach() if loss.dim() == 0 else loss.detach().mean())
        if not self._pace.is_idle:
            self._restraint.watch_climb(self._losses[-1], self.iterations, self.groups)
        if self._pace.is_due:
            self._decide()
        self._pace.check_heard(len(self._losses))
        if self._stopwatch is not None and self._pace.measures:
            self._stopwatch.begin()

    def validate(self, value: torch.Tensor | float) -> None:
        """Tell of a loss on validation data, whenever there is one."""
        value = float(value)
        if math.isnan(self._control) and math.isfinite(value):
            self._observer.tell_control(value)
        self._control = value

    def loader(
        self, dataset: Dataset[Any], batch_size: int, *, by_loss: bool = False, seed: int = 0, **options: Any
    ) -> SteeredLoader:
        """A ``DataLoader`` of ``dataset``, shuffled, whose repetition of batches is steered.

        With ``by_loss`` the order of samples is too; ``step`` then takes the loss of each. ``options`` are those of
        ``DataLoader``. For errors see ``SteeredLoader``.
        """
        self._loader = SteeredLoader(dataset, batch_size, self, by_loss=by_loss, seed=seed, **options)
        self._steered = self._find_steered()
        return self._loader

    def read_in_force(self, field: str) -> float:
        """What a field of the plan is in the loop: with ``advise``, or after letting go, nothing is changed."""
        return self._untouched[field] if self.advise or self.stopped is not None else self.plan[field]

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the parameters are the averaged weights that the plan asks for; to validate or to save them."""
        return self._average.applied(self.groups.parameters)

    def detach(self) -> None:
        """Let go: the hooks are taken away, and the settings stay as they are."""
        self._hooks.remove()
        vars(self.groups.optimizer).pop(_ATTACHED, None)
        self._record.close()

    def _begin_prices(self, prices: Mapping[str, float] | str | None) -> None:
        self.prices: dict[str, float] | None = None
        self._stopwatch = make_stopwatch(prices, self.groups.means.rule, self.groups.device)
        self._tell_prices(prices if isinstance(prices, Mapping) else None)

    def _tell_prices(self, prices: Mapping[str, float] | None) -> None:
        if prices is not None:
            check_prices(prices, OPTIMIZERS)
            self.prices, self._stopwatch = dict(prices), None
            self._observer.tell_prices(self.prices)

    # Within an update

    def _begin_decision(self) -> None:
        self._losses, self._count = list[torch.Tensor](), 0  # and updates, since the last decision
        self._plan_ahead(0)
        self._watch.begin()

    def _plan_ahead(self, ticks: int) -> None:
        """Settle what is to be done from here to the next decision; the last one was so many iterations ago."""
        timed, climbs = self._stopwatch is not None, self.iterations < self._restraint.warmup.iterations
        busy = timed or climbs or self._clips or not self._begun
        self._pace.begin(self.decisions, ticks, busy=busy)

    @property
    def _clips(self) -> bool:
        return self.plan["clip"] < math.inf and not self.advise and self.groups.whole is None  # which clips by itself

    def _before_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Look at the gradients now; where the optimizer is given a closure, after it has made them."""
        if self._pace.is_idle:
            return None
        return arrive_after_closure(args, kwargs, lambda: self._arrive(optimizer))

    def _arrive(self, optimizer: Optimizer) -> None:
        if self.stopped is not None:
            return
        watch = self._stopwatch
        if watch is None or not self._pace.measures:
            self._prepare(optimizer)
            return
        watch.end(watch.passes)
        self._prepare(optimizer)
        watch.begin()

    def _prepare(self, optimizer: Optimizer) -> None:
        """Measure and clip what the optimizer is about to use."""
        self._meet_groups()
        if not self._begun:  # what is known before the first update is reason enough to act
            self._begun = True
            self._restraint.say_what_is_off(optimizer, self.policy.knobs.knobs, self._steered)
            self._turn(self.groups.read(self.plan), None, FINE)
            self.groups.refuse_sparse()
            self._plan_ahead(self._pace.ticks)
        self._restraint.warmup.begin(optimizer, self.iterations)
        if self.groups.whole is not None:
            return  # it says by itself when it makes an update, and clips it
        if self._pace.measures or self._clips:
            parameters, scale = [p for p in self.groups.parameters if p.grad is not None], find_scale(optimizer)
            if self._pace.measures and parameters:
                self._watch.measure_held(self.groups, parameters, scale)
            if self._clips and parameters:
                clip_gradients([p.grad for p in parameters if p.grad is not None], self.plan["clip"] * scale)

    def _look_at_update(
        self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], momenta: list[torch.Tensor]
    ) -> None:
        if self.stopped is None and self._pace.measures:
            self._watch.measure(parameters, gradients, momenta)

    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._pace.is_idle:
            self._restraint.warmup.end()
        if self.stopped is not None or float(getattr(optimizer, "found_inf", None) or 0) > 0:
            return  # an update that a GradScaler skipped is none
        if self._stopwatch is not None:
            self._stopwatch.end(self._stopwatch.updates)
        self._pace.ticks += 1
        self.iterations += 1
        if self.groups.whole is not None and not self.groups.whole.updated:
            return
        self._count += 1
        self.updates += 1
        if not self.advise and (self.plan["average"] > 0 or self._average.weights):
            self._average.update(self.groups.parameters, self.plan["average"])

    # Between updates

    def _decide(self) -> None:
        self._meet_groups()
        losses = average_over_processes(read_numbers(self._losses), self.groups.device)
        statistics = self._watch.read(losses, self._count)
        found = self.groups.read(self.plan)
        telemetry = summarise(statistics, self.plan["clip"], self._observer.arithmetic)
        verdict = self._guarded(statistics, telemetry, found, losses)
        found["learning_rate"] *= self._restraint.warmup.settle()
        self.decisions += 1
        if self._stopwatch is not None:
            seconds = None if self.groups.whole is None else self.groups.whole.time_rules()
            self._tell_prices(self._stopwatch.read_prices(seconds))
        if self.stopped is None:
            self._seen = self._observe(telemetry, restored=verdict != FINE, plan=found)
            self._turn(found, telemetry, verdict)
        self._begin_decision()

    def _turn(self, found: _Plan, telemetry: Telemetry | None, verdict: int) -> None:
        """Choose a plan by what is seen, and set it."""
        chosen = self._restraint.hold(self._choose(found), self.iterations, self.every, self.groups.device)
        self._record.write(self._seen, found, chosen, telemetry, VERDICTS[verdict])
        self.plan = chosen
        if not self.advise:
            self.groups.write(chosen)
            self._restraint.take_force()

    def _guarded(self, statistics: Statistics, telemetry: Telemetry, found: _Plan, losses: list[float]) -> int:
        """The guard's verdict; what it restores is restored, and the learning rate in ``found`` lowered."""
        if self._guard is None or self.advise:
            return FINE
        verdict, given_up = self._guard.watch(statistics, telemetry, found, losses)
        if verdict != FINE:
            found["learning_rate"] *= self._guard.rate_factor
            self._average.weights = []
        if given_up:
            self._fall_back("the guard has brought it back as often as it may")
        return verdict

    def _fall_back(self, reason: str) -> None:
        """The user's own settings again, and no further decisions."""
        self.stopped = reason
        self._own.give_back(self.groups.optimizer)
        warnings.warn(f"steering has stopped: {reason}; the optimizer has its own settings again", stacklevel=4)

    def _observe(
        self, telemetry: Telemetry | None, *, restored: bool, plan: Mapping[str, float] | None = None
    ) -> np.ndarray:
        left = 1.0 if self.steps is None else max(0.0, 1 - self.iterations / self.steps)
        guard_left = 0.0 if self._guard is None else self._guard.left
        reading = Reading(
            telemetry, self._control, self._restraint.undo(plan or self.plan), left, telemetry is not None, restored,
            guard_left, float(self.iterations * self._context.microbatch),
        )  # fmt: skip
        return self._observer.observe(reading)

    def _choose(self, found: _Plan) -> _Plan:
        wanted = self.policy.steps_of_one(self._seen, self._memory)
        steps = [step if on else 0.0 for step, on in zip(wanted, self._steered, strict=True)]
        steps = self._restraint.rein(steps, self.iterations)
        ratio = None if self.groups.whole is None else self.groups.whole.step_ratio
        return self.policy.knobs.move_fields(steps, self._restraint.undo(found), self._observer.arithmetic, ratio)

    # Going on after an interruption

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed job needs to go on exactly; beside the model's and the optimizer's own."""
        return {
            "plan": dict(self.plan), "prices": self.prices, "restraint": self._restraint.state_dict(),
            "made": (self.decisions, self.updates, self.iterations, self._count, self._pace.ticks),
            "begun": self._begun, "own": self._own.groups, "stopped": self.stopped, "control": self._control,
            "seen": torch.from_numpy(self._seen.copy()),
            "losses": [loss.clone() for loss in self._losses], "average": self._average.state_dict(),
            "observer": self._observer.state_dict(),
            "guard": None if self._guard is None else self._guard.state_dict(),
            "loader": None if self._loader is None else self._loader.state_dict(), "probe": self._watch.state_dict(),
            "memory": None if self._memory is None else self._memory.tolist(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``; the model and the optimizer have been brought back already."""
        self.plan, self._control, self.stopped = dict(state["plan"]), state["control"], state["stopped"]
        self._begun, self._own.groups = state["begun"], list(state["own"])
        self._restraint.load_state_dict(state["restraint"])
        self.decisions, self.updates, self.iterations, self._count, ticks = state["made"]
        self._plan_ahead(ticks)
        self._record.go_back(self.decisions if self._begun else -1)
        self._seen, self._losses = state["seen"].numpy(), list(state["losses"])
        self._average.load_state_dict(state["average"])
        self._observer.load_state_dict(state["observer"])
        self._memory = None if self._memory is None else np.array(state["memory"], np.float32)
        if self._guard is not None and state["guard"] is not None:
            self._guard.load_state_dict(state["guard"])
        if self._loader is not None and state["loader"] is not None:
            self._loader.load_state_dict(state["loader"])
        self._tell_prices(state["prices"])
        self._watch.load_state_dict(state["probe"], list(self.groups.parameters))
