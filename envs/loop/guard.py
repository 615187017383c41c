"""Guard: watches for divergence and brings a run back to its last good snapshot.

An alarm is a loss, gradient or step that is not finite; a mean loss over a decision that is both ``LOSS_SPIKE_RATIO``
times and ``SPIKE_SIGMAS`` standard deviations (in logarithms) above its running average, or ``START_RATIO`` times what
it was before training, which is asked of the control loss too where that was looked at; or a gradient norm far above
its average in the same way. The guard then restores weights,
optimizer state, averages and data cursor, and halves the learning rate. What the failed decision cost stays charged.
After ``limit`` interventions in an episode spikes are let be, and the next loss that is not finite or ``START_RATIO``
times what it was before training ends it, in the last good state.

A snapshot counts as good only where no loss is above ``GOOD_RATIO`` times that before training, and once the run has
trained on from it without an alarm: weights that have just exploded can look fine until the next gradient.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol

from loopwright.envs.loop.arithmetic import Arithmetic, Many, Number, One
from loopwright.envs.loop.averages import RunningMoments
from loopwright.envs.loop.telemetry import Telemetry

VERDICTS = ("fine", "not finite", "loss spike", "gradient spike")
FINE, NOT_FINITE, LOSS_SPIKE, GRADIENT_SPIKE = range(len(VERDICTS))
LOSS_SPIKE_RATIO, GRADIENT_SPIKE_RATIO, SPIKE_SIGMAS = 3.0, 10.0, 6.0
START_RATIO, GOOD_RATIO = 10.0, 2.0
HALF_LIFE, SETTLED = 8.0, 4  # of the running averages, in decisions; how many it takes before a spike means anything
SNAPSHOT_EVERY = 4  # decisions
RATE_FACTOR = 0.5
# Another data order has another mean loss, another gradient path another norm: a jump with them is no alarm.
LOSS_REGIME = ("order",)
GRADIENT_REGIME = ("order", "batch", "depth", "keep", "sweep")


class Snapshots(Protocol):
    """Room for one stored state of each run."""

    def save(self, chosen: Number) -> None:
        """Store the present state of the runs ``chosen``, a truth value for each."""
        ...

    def restore(self, chosen: Number) -> None:
        """Bring the runs ``chosen`` back to what was stored for them."""
        ...


class Guard:
    """Watches runs. What it takes and gives are numbers of its arithmetic (``envs.loop.arithmetic``), one for each run.

    Args:
        slots: room for two states of each run.
        lanes: how many runs; None for a single one, whose numbers are floats.
        limit: interventions per episode, >= 1.

    Attributes:
        interventions: how often it has acted in the present episode.
        rate_scale: product of the halvings: what a learning rate that was set without regard to the plan that was found
            has to be multiplied by.
    """

    def __init__(self, slots: tuple[Snapshots, Snapshots], lanes: int | None, limit: int) -> None:
        self.limit = limit
        self.arithmetic: Arithmetic = One() if lanes is None else Many(lanes)
        fill = self.arithmetic.fill
        self.interventions, self.rate_scale = fill(0.0), fill(1.0)
        self._slots = slots
        self._second = fill(False)  # whether the good state lies in the second slot
        self._pending = fill(False)  # whether the other holds one on probation
        self._age = fill(0.0)
        self._start = fill(1.0)  # the loss before training
        self._loss, self._norm = (RunningMoments(self.arithmetic, HALF_LIFE) for _ in range(2))
        self._regime: dict[str, Number] = {}

    def begin(self, index: Any, loss: Any) -> None:
        """A new episode in the runs ``index``, of this ``loss`` before training: that is the first good snapshot."""
        put = self.arithmetic.put
        self.interventions, self.rate_scale = put(self.interventions, index, 0.0), put(self.rate_scale, index, 1.0)
        self._start = put(self._start, index, loss)
        self._loss.forget(index)
        self._norm.forget(index)
        self._take_for_good(index)

    def rolled_back(self, chosen: Any) -> None:
        """The runs ``chosen`` were brought back to another state: from now on that is their good snapshot.

        What the slots held belongs to the run that was abandoned.
        """
        self._take_for_good(chosen)

    def _take_for_good(self, index: Any) -> None:
        put, no = self.arithmetic.put, self.arithmetic.fill(False)
        self._second, self._pending = put(self._second, index, False), put(self._pending, index, False)
        self._age = put(self._age, index, 0.0)
        self._slots[0].save(put(no, index, True))

    def watch(
        self, finite: Number, telemetry: Telemetry, plan: Mapping[str, Number], control_loss: Number = 0.0
    ) -> tuple[Number, Number]:
        """Judge a decision that ran under a ``plan``, its fields by name, and restore the runs that need it.

        ``finite`` says whose losses, gradients and steps were. ``control_loss`` is what the decision has led to, 0
        where nobody has looked: it alone shows weights that exploded in the last updates. Returns the verdict, an index
        into ``VERDICTS``, and whether the run is given up because the limit was reached. A run that is given up is
        restored all the same.
        """
        xp = self.arithmetic
        log_loss, log_norm = xp.log(telemetry["loss"]), telemetry["log_gradient_norm"]
        self._follow_regime(plan)
        highest = xp.where(control_loss > telemetry["loss"], control_loss, telemetry["loss"])
        ruined = highest > START_RATIO * self._start
        verdict = self._judge(finite, ruined, log_loss, log_norm)
        spent = self.interventions >= self.limit
        verdict = xp.where(spent & finite & xp.negate(ruined), FINE, verdict)
        alarm = verdict != FINE
        calm, given_up = xp.negate(alarm), alarm & spent
        if xp.any(alarm):
            first, second = self._slots
            first.restore(alarm & xp.negate(self._second))
            second.restore(alarm & self._second)
            self.interventions = xp.where(alarm & xp.negate(spent), self.interventions + 1, self.interventions)
            self.rate_scale = xp.where(alarm, self.rate_scale * RATE_FACTOR, self.rate_scale)
        self._loss.update(log_loss, calm)
        self._norm.update(log_norm, calm)  # NaN without an update, which is passed over
        self._keep(calm & (highest <= GOOD_RATIO * self._start))
        return verdict, given_up

    def _follow_regime(self, plan: Mapping[str, Number]) -> None:
        """Forget averages that say nothing of what the ``plan`` makes of losses and gradients."""
        before, self._regime = self._regime, {name: plan[name] + 0.0 for name in GRADIENT_REGIME}
        if before:
            changed = {name: self._regime[name] != before[name] for name in GRADIENT_REGIME}
            for fields, moments in ((LOSS_REGIME, self._loss), (GRADIENT_REGIME, self._norm)):
                other = self.arithmetic.fill(False)
                for name in fields:
                    other = other | changed[name]
                if self.arithmetic.any(other):
                    moments.forget(other)

    def _judge(self, finite: Number, ruined: Number, log_loss: Number, log_norm: Number) -> Number:
        where = self.arithmetic.where

        def spike(moments: RunningMoments, value: Number, ratio: float) -> Number:
            distance = moments.distance(value)
            far = (distance > math.log(ratio)) & (distance > SPIKE_SIGMAS * moments.deviation)
            return far & (moments.seen >= SETTLED)

        verdict = where(spike(self._norm, log_norm, GRADIENT_SPIKE_RATIO), GRADIENT_SPIKE, FINE)
        verdict = where(ruined | spike(self._loss, log_loss, LOSS_SPIKE_RATIO), LOSS_SPIKE, verdict)
        return where(self.arithmetic.negate(finite), NOT_FINITE, verdict)

    def _keep(self, good: Number) -> None:
        """Every few decisions the snapshot on probation has passed, and the present state takes its place."""
        xp = self.arithmetic
        self._pending, self._age = self._pending & good, self._age + 1
        due = good & (self._age % SNAPSHOT_EVERY == 0)
        if xp.any(due):
            self._second = self._second ^ (due & self._pending)
            first, second = self._slots
            first.save(due & self._second)
            second.save(due & xp.negate(self._second))
            self._pending = self._pending | due
