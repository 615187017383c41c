"""Observer: computes the observation of runs from what was read of them, and keeps what it remembers for that."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from loopwright.envs.loop.arithmetic import Arithmetic, Many, Number, One
from loopwright.envs.loop.averages import HALF_LIVES, Averages, Floats, RunningMoments
from loopwright.envs.loop.changes import Changes
from loopwright.envs.loop.context import CONTEXT_FEATURES, Context
from loopwright.envs.loop.knobs import find_positions
from loopwright.envs.loop.memory import load_memory, save_memory
from loopwright.envs.loop.observation import LIMIT, OBSERVATION_NAMES
from loopwright.envs.loop.telemetry import TELEMETRY, Telemetry

LOSS_RANGE = 1e3  # a loss counts as at most so many times V0, or so many times less: it may be 0, or infinite
_MEMORY = ("log_start", "log_target", "lowest_control", "first_norm", "decisions", "start_known")
_OF_LOSS = ("loss", "loss_std", "updates")
Columns = dict[str, Number]


@dataclass(frozen=True)
class Reading:
    """What is read of the runs after a decision: numbers of the observer's arithmetic.

    Attributes:
        telemetry: of the decision; None before the first.
        control_loss: mean loss on the last control batch; not used where a run has no control split.
        plan: the fields that the next decision starts from, by name.
        budget_left: as a share, in [0, 1].
        trained: False for a run that has not trained since ``Observer.begin``: its telemetry is not used.
        restored: the runs whose decision the guard undid: what was measured in it is forgotten with it.
        guard_left: share of the guard's interventions left; 0 without a guard.
        samples_read: training samples read so far, those that were read again by ``echo`` counted once.
    """

    telemetry: Telemetry | None
    control_loss: Number
    plan: Mapping[str, Number]
    budget_left: Number
    trained: Number
    restored: Number
    guard_left: Number = 0.0
    samples_read: Number = 0.0


class Observer:
    """Computes the observation of ``lanes`` runs, or of one, and remembers what it needs for that.

    L is the mean training loss of the last decision, V the loss on the last control batch, V0 that before training.

    Args:
        lanes: how many runs; None for a single one, whose numbers are floats.
        arithmetic: what a single one is computed in; None: ``One``.
    """

    no_memory: ClassVar[tuple[str, ...]] = ("arithmetic", "_xp")  # attributes, its own and of what it consists of

    def __init__(self, lanes: int | None = None, arithmetic: Arithmetic = None) -> None:
        self.arithmetic: Arithmetic = Many(lanes) if lanes is not None else arithmetic or One()
        xp, zero = self.arithmetic, self.arithmetic.fill(0.0)
        self._memory: Columns = dict.fromkeys(_MEMORY, zero)
        self._context: Columns = dict.fromkeys(CONTEXT_FEATURES, zero)
        self._changes = Changes(xp)
        self._losses = Averages(xp, ("train", "control", "gap"))  # log L, log V and their difference
        self._norms = Averages(xp, ("norm", "deviation"))  # of log|G|, over decisions with an update
        self._signals = Averages(xp, ("signal",))  # over decisions with two updates
        self._moments = {kind: RunningMoments(xp, HALF_LIVES["slow"]) for kind in ("train", "control")}
        self._zscores: Columns = dict.fromkeys(self._moments, zero)
        self._last: Columns = dict.fromkeys(TELEMETRY, zero)

    def begin(self, lanes: Sequence[int], control_loss: Floats, contexts: Sequence[Context]) -> None:
        """Forget what was seen in ``lanes``; ``control_loss [len(lanes)]`` is theirs before training."""
        put, index = self.arithmetic.put, list(lanes)
        for numbers in (self._memory, self._last, self._zscores):
            numbers.update({name: put(value, index, 0.0) for name, value in numbers.items()})
        memories: list[Any] = [self._losses, self._norms, self._signals, *self._moments.values(), self._changes]
        for memory in memories:
            memory.forget(index)
        starts = [
            math.log(max(loss, 1e-12)) if context.control else 0.0
            for loss, context in zip(np.asarray(control_loss).tolist(), contexts, strict=True)
        ]
        targets = [math.nan if context.target is None else math.log(context.target) for context in contexts]
        begun = {
            "log_start": starts, "lowest_control": starts, "log_target": targets,
            "start_known": [float(context.control) for context in contexts],
        }  # fmt: skip
        described = [context.features() for context in contexts]
        known = {name: [each[name] for each in described] for name in CONTEXT_FEATURES}
        for numbers, values in ((self._memory, begun), (self._context, known)):
            numbers.update({name: put(numbers[name], index, value) for name, value in values.items()})

    def observe(self, reading: Reading) -> Floats:
        """Take in what was read; the observation ``[lanes, len(OBSERVATION_NAMES)]`` float32."""
        seen = self.arithmetic.join(self.compute_features(reading))
        # A run that has just diverged is shown at the limits, not as NaN: the controller must be able to see it.
        seen[np.isnan(seen)] = LIMIT
        observation: Floats = np.minimum(np.maximum(seen, -LIMIT), LIMIT)
        return observation

    def compute_features(self, reading: Reading) -> list[Number]:
        """The same before bounds: the features one by one."""
        positions = find_positions(reading.plan, self.arithmetic)
        if reading.telemetry is not None:
            useful = reading.trained & self.arithmetic.negate(reading.restored)
            below = self._remember(reading.telemetry, reading.control_loss, useful)
            self._changes.learn(reading.plan, positions, below, reading.trained, reading.restored)
            self._memory["decisions"] = self._memory["decisions"] + reading.trained
        self._changes.note(reading.plan, positions)
        columns = {
            **self._loss_features(),
            **self._gradient_features(reading),
            **self._run_features(reading),
            **self._changes.features(),
            **{f"plan_{name}": position for name, position in positions.items()},
        }
        return [columns[name] for name in OBSERVATION_NAMES]

    def tell_control(self, loss: float) -> None:
        """From now on there is a control split, whose first loss this is."""
        xp, log_loss = self.arithmetic, math.log(max(loss, 1e-12))
        self._context["control_given"] = xp.fill(1.0)
        known = self._memory["start_known"] > 0
        for name in ("log_start", "lowest_control"):
            self._memory[name] = xp.where(known, self._memory[name], log_loss)
        self._memory["start_known"] = xp.fill(1.0)

    def tell_prices(self, passes: Mapping[str, float]) -> None:
        """From now on it is known what an update by each rule takes, in passes over a microbatch."""
        known = Context(prices=passes, microbatch=1).features()
        for name in ("prices_given", *(name for name in CONTEXT_FEATURES if name.startswith("price_"))):
            self._context[name] = self.arithmetic.fill(known[name])

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, as plain values."""
        found: dict[str, Any] = save_memory(self, self.no_memory)
        return found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what a ``state_dict`` says."""
        load_memory(self, state)

    @property
    def log_loss(self) -> Number:
        """How far the runs have come: the higher of smoothed control and training loss, in logarithms.

        A control batch is small: ruined weights can get all of it right by luck, and then have no loss at all.
        """
        return self.arithmetic.maximum(self._losses.get("control", "fast"), self._losses.get("train", "fast"))

    @property
    def _smoothed_control(self) -> Number:
        """log V, averaged fast; before training log V0."""
        return self.arithmetic.where(
            self._losses.started, self._losses.get("control", "fast"), self._memory["log_start"]
        )

    def _loss_features(self) -> Columns:
        xp, m, last = self.arithmetic, self._memory, self._last
        average, started, where = self._losses.get, self._losses.started, self.arithmetic.where
        train = where(started, xp.log(last["loss"]), m["log_start"])
        control, given = self._smoothed_control, self._context["control_given"]
        return {
            "train_progress": train - m["log_start"],
            "control_progress": given * (control - m["log_start"]),
            "train_trend_fast": where(started, train - average("train", "fast"), 0.0),
            "train_trend_slow": where(started, train - average("train", "slow"), 0.0),
            "train_trend_long": where(started, train - average("train", "long"), 0.0),
            "train_zscore": self._zscores["train"],
            "control_trend": given * where(started, control - average("control", "slow"), 0.0),
            "control_zscore": given * self._zscores["control"],
            "control_from_best": given * (control - m["lowest_control"]),
            "loss_noise": where(started & (last["loss"] != 0), xp.divide(last["loss_std"], last["loss"]), 0.0),
            "generalisation_gap": given * where(started, control - average("train", "fast"), 0.0),
            "gap_trend": given * where(started, average("gap", "fast") - average("gap", "long"), 0.0),
        }

    def _gradient_features(self, reading: Reading) -> Columns:
        xp, last, average, updated = self.arithmetic, self._last, self._norms.get, self._norms.started
        norm, where = last["log_gradient_norm"], self.arithmetic.where
        above = where(updated, norm - average("norm", "slow"), 0.0)
        signal = xp.minimum(xp.maximum(self._signals.get("signal", "fast"), 0.0), 1.0)
        return {
            "gradient_level": above,
            "gradient_zscore": above / (average("deviation", "slow") + 0.05),
            "gradient_spread": last["log_gradient_norm_std"],
            "gradient_since_start": where(updated, norm - self._memory["first_norm"], 0.0),
            "gradient_cosine": last["gradient_cosine"],
            "momentum_cosine": last["momentum_cosine"],
            "momentum_ratio": last["log_momentum_ratio"],
            "gradient_noise_scale": where(self._signals.started, xp.log(xp.divide(1 - signal, signal)), 0.0),
            "curvature": last["curvature"],
            "clipped_fraction": last["clipped_fraction"],
            "clip_margin": where(updated, xp.log(reading.plan["clip"]) - norm, LIMIT),
            "step_ratio": where(updated, last["log_step_ratio"] + 6.0, 0.0),
        }

    def _run_features(self, reading: Reading) -> Columns:
        """Budget, target, guard, and what the context says."""
        xp, m, context = self.arithmetic, self._memory, self._context
        given = xp.negate(xp.isnan(m["log_target"])) & (m["start_known"] > 0)
        return {
            **context,
            "decisions": xp.log1p(m["decisions"]),
            "target_distance": xp.where(given, self._smoothed_control - m["log_target"], 0.0),
            "target_depth": xp.where(given, m["log_start"] - m["log_target"], 0.0),
            "budget_left": context["budget_given"] * reading.budget_left,
            "passes": xp.log1p(context["size_given"] * reading.samples_read / 10 ** (context["samples"] + 3)),
            "restored": xp.where(reading.restored, 1.0, 0.0),
            "guard_left": reading.guard_left,
        }

    def _remember(self, telemetry: Telemetry, control_loss: Number, training: Number) -> Number:
        """Take in a decision of the runs in ``training``; how far log L was below its fast average."""
        xp, m, where, last = self.arithmetic, self._memory, self.arithmetic.where, self._last
        for name, value in telemetry.items():
            # Without an update there is no new gradient statistic: the last one stands.
            fresh = training if name in _OF_LOSS else training & xp.negate(xp.isnan(value))
            last[name] = where(fresh, value, last[name])
        updating = training & xp.negate(xp.isnan(telemetry["log_gradient_norm"]))
        self._find_start(training)
        start = xp.exp(m["log_start"])
        control_loss = where(self._context["control_given"] > 0, control_loss, last["loss"])
        train, control = (
            xp.minimum(xp.maximum(where(xp.isnan(loss), math.inf, loss), start / LOSS_RANGE), start * LOSS_RANGE)
            for loss in (last["loss"], control_loss)
        )
        before = where(self._losses.started, self._losses.get("train", "fast"), m["log_start"])
        m["first_norm"] = where(updating & xp.negate(self._norms.started), last["log_gradient_norm"], m["first_norm"])
        for kind, value in (("train", train / start), ("control", control / start)):
            moments = self._moments[kind]
            deviation = moments.deviation
            score = where(deviation > 0, xp.divide(moments.distance(value), deviation), 0.0)
            self._zscores[kind] = where(training, score, self._zscores[kind])
            moments.update(value, training)
        logs = {"train": xp.log(train), "control": xp.log(control)}
        self._losses.update(logs | {"gap": logs["control"] - logs["train"]}, training)
        self._norms.update({"norm": last["log_gradient_norm"], "deviation": last["log_gradient_norm_std"]}, updating)
        paired = training & xp.negate(xp.isnan(telemetry["signal"]))
        self._signals.update({"signal": last["signal"]}, paired)
        lowest, smoothed = m["lowest_control"], self._losses.get("control", "fast")
        m["lowest_control"] = where(training & (smoothed < lowest), smoothed, lowest)
        return before - logs["train"]

    def _find_start(self, training: Number) -> None:
        """Where there is no control split, V0 is the training loss of the first decision."""
        xp, m, loss = self.arithmetic, self._memory, self._last["loss"]
        first = training & (m["start_known"] == 0) & xp.isfinite(loss)
        for name in ("log_start", "lowest_control"):
            m[name] = xp.where(first, xp.log(xp.maximum(loss, 1e-12)), m[name])
        m["start_known"] = xp.where(first, 1.0, m["start_known"])
