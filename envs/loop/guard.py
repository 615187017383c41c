"""Guard: watches for divergence and brings a run back to its last good snapshot.

An alarm is a loss, gradient or step that is not finite; a mean loss over a decision that is both ``LOSS_SPIKE_RATIO``
times and ``SPIKE_SIGMAS`` standard deviations (in logarithms) above its running average, or ``START_RATIO`` times what
it was before training; or a gradient norm far above its average in the same way. The guard then restores weights,
optimizer state, averages and data cursor, and halves the learning rate. What the failed decision cost stays charged.
After ``limit`` interventions in an episode spikes are let be, and the next value that is not finite ends it.

A snapshot counts as good only once the run has trained on from it without an alarm: weights that have just exploded can
look fine until the next gradient.
"""

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from loopwright.envs.loop.arithmetic import Many
from loopwright.envs.loop.averages import Floats, Mask, RunningMoments
from loopwright.envs.loop.plan import ROW
from loopwright.envs.loop.telemetry import Telemetry

VERDICTS = ("fine", "not finite", "loss spike", "gradient spike")
FINE, NOT_FINITE, LOSS_SPIKE, GRADIENT_SPIKE = range(len(VERDICTS))
LOSS_SPIKE_RATIO, GRADIENT_SPIKE_RATIO, SPIKE_SIGMAS = 3.0, 10.0, 6.0
START_RATIO = 10.0
HALF_LIFE, SETTLED = 8.0, 4  # of the running averages, in decisions; how many it takes before a spike means anything
SNAPSHOT_EVERY = 4  # decisions
RATE_FACTOR = 0.5
# Another data order has another mean loss, another gradient path another norm: a jump with them is no alarm.
LOSS_REGIME = ("order",)
GRADIENT_REGIME = ("order", "batch", "depth", "keep", "sweep")


class Snapshots(Protocol):
    """Room for one stored state of each run."""

    def save(self, chosen: Mask) -> None:
        """Store the present state of the runs ``chosen``, a mask ``[lanes]``."""
        ...

    def restore(self, chosen: Mask) -> None:
        """Bring the runs ``chosen`` back to what was stored for them."""
        ...


class Guard:
    """Watches ``lanes`` runs.

    Args:
        slots: room for two states of each run.
        lanes: how many runs.
        limit: interventions per episode, >= 1.

    Attributes:
        interventions: how often it has acted in the present episode, ``[lanes]``.
        rate_scale: product of the halvings, ``[lanes]``: what a learning rate that was set without regard to the plan
            that was found has to be multiplied by.
    """

    def __init__(self, slots: tuple[Snapshots, Snapshots], lanes: int, limit: int) -> None:
        self.limit = limit
        self.interventions = np.zeros(lanes, np.float32)
        self.rate_scale = np.ones(lanes, np.float32)
        self._slots = slots
        self._good = np.zeros(lanes, int)  # which of the slots holds the good one
        self._pending = np.zeros(lanes, bool)  # whether the other holds one on probation
        self._age = np.zeros(lanes, int)
        self._start = np.ones(lanes, np.float32)  # the loss before training
        self._loss, self._norm = (RunningMoments(Many(lanes), HALF_LIFE) for _ in range(2))
        self._plans: Floats | None = None

    def begin(self, index: npt.NDArray[np.integer], loss: Floats) -> None:
        """A new episode in the lanes ``index``, of this ``loss`` before training: that is the first good snapshot."""
        mask = np.zeros(len(self.interventions), bool)
        mask[index] = True
        self.interventions[index], self.rate_scale[index] = 0.0, 1.0
        self._good[index], self._pending[index], self._age[index] = 0, False, 0
        self._start[index] = loss
        self._slots[0].save(mask)
        self._loss.forget(index)
        self._norm.forget(index)

    def rolled_back(self, chosen: Mask) -> None:
        """The lanes ``chosen``, a mask, were brought back to another state: from now on that is their good snapshot.

        What the slots held belongs to the run that was abandoned.
        """
        self._good[chosen], self._pending[chosen], self._age[chosen] = 0, False, 0
        self._slots[0].save(chosen)

    def watch(self, finite: Mask, telemetry: Telemetry, plans: Floats) -> tuple[npt.NDArray[np.integer], Mask]:
        """Judge a decision that ran under ``plans``, and restore the runs that need it.

        ``finite`` says whose losses, gradients and steps were. Returns the verdict, an index into ``VERDICTS``, and
        whether the run is given up because the limit was reached, each ``[lanes]``. A run that is given up is restored
        all the same.
        """
        with np.errstate(all="ignore"):
            log_loss, log_norm = np.log(telemetry["loss"]), telemetry["log_gradient_norm"]
            verdict = self._judge(finite, telemetry["loss"], log_loss, log_norm, plans)
            spent = self.interventions >= self.limit
            verdict[spent & (verdict != NOT_FINITE)] = FINE
            alarm = verdict != FINE
            given_up = alarm & spent
            if alarm.any():
                for slot, snapshots in enumerate(self._slots):
                    snapshots.restore(alarm & (self._good == slot))
                self.interventions += alarm & ~given_up
                self.rate_scale[alarm] *= RATE_FACTOR
            self._loss.update(log_loss, ~alarm)
            self._norm.update(log_norm, ~alarm)  # NaN without an update, which is passed over
        self._keep(alarm)
        return verdict, given_up

    def _judge(
        self, finite: Mask, loss: Floats, log_loss: Floats, log_norm: Floats, plans: Floats
    ) -> npt.NDArray[np.integer]:
        if self._plans is not None and not np.array_equal(plans, self._plans):
            for fields, moments in ((LOSS_REGIME, self._loss), (GRADIENT_REGIME, self._norm)):
                rows = [ROW[field] for field in fields]
                moments.forget((plans[rows] != self._plans[rows]).any(0))
        self._plans = plans.copy()

        def spike(moments: RunningMoments, value: Floats, ratio: float) -> Mask:
            distance = moments.distance(value)
            far = (distance > math.log(ratio)) & (distance > SPIKE_SIGMAS * moments.deviation)
            found: Mask = far & (moments.seen >= SETTLED)
            return found

        verdict = np.full(len(finite), FINE)
        verdict[spike(self._norm, log_norm, GRADIENT_SPIKE_RATIO)] = GRADIENT_SPIKE
        verdict[(loss > START_RATIO * self._start) | spike(self._loss, log_loss, LOSS_SPIKE_RATIO)] = LOSS_SPIKE
        verdict[~finite] = NOT_FINITE
        return verdict

    def _keep(self, alarm: Mask) -> None:
        """Every few decisions the snapshot on probation has passed, and the present state takes its place."""
        self._pending &= ~alarm
        self._age += 1
        due = ~alarm & (self._age % SNAPSHOT_EVERY == 0)
        if due.any():
            passed = due & self._pending
            self._good[passed] = 1 - self._good[passed]
            for slot, snapshots in enumerate(self._slots):
                snapshots.save(due & (self._good != slot))
            self._pending |= due
