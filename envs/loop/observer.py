"""Observer: computes the observation of many runs from what was read of them, and keeps what it remembers for that."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from loopwright.envs.loop.averages import HALF_LIVES, Averages, RunningMoments
from loopwright.envs.loop.changes import Changes
from loopwright.envs.loop.context import CONTEXT_FEATURES, Context
from loopwright.envs.loop.knobs import KNOBS
from loopwright.envs.loop.observation import LIMIT, OBSERVATION_NAMES
from loopwright.envs.loop.plan import ROW
from loopwright.envs.loop.telemetry import Telemetry

LOSS_RANGE = 1e3  # a loss counts as at most so many times V0, or so many times less: it may be 0, or infinite
Columns = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Reading:
    """What is read of the runs after a decision, each ``[lanes]``.

    Attributes:
        telemetry: of the decision; None before the first.
        control_loss: mean loss on the last control batch; not used where a run has no control split.
        plans: those that the next decision starts from, ``[len(PLAN_FIELDS), lanes]``.
        budget_left: as a share, in [0, 1].
        trained: False for a run that has not trained since ``Observer.begin``: its telemetry is not used.
        restored: the runs whose decision the guard undid: what was measured in it is forgotten with it.
        guard_left: share of the guard's interventions left; None without a guard.
        samples_read: training samples read so far, those that were read again by ``echo`` counted once.
    """

    telemetry: Telemetry | None
    control_loss: torch.Tensor
    plans: torch.Tensor
    budget_left: torch.Tensor
    trained: torch.Tensor
    restored: torch.Tensor
    guard_left: torch.Tensor | None = None
    samples_read: torch.Tensor | None = None


class Observer:
    """Computes the observation of ``lanes`` runs, and remembers what it needs for that.

    L is the mean training loss of the last decision, V the loss on the last control batch, V0 that before training.
    """

    def __init__(self, lanes: int) -> None:
        names = ("log_start", "log_target", "lowest_control", "first_norm", "decisions", "start_known")
        self._memory = {name: torch.zeros(lanes) for name in names}
        self._context = {name: torch.zeros(lanes) for name in CONTEXT_FEATURES}
        self._changes = Changes(lanes)
        self._losses = Averages(lanes, ("train", "control", "gap"))  # log L, log V and their difference
        self._norms = Averages(lanes, ("norm", "deviation"))  # of log|G|, over decisions with an update
        self._moments = {kind: RunningMoments(lanes, HALF_LIVES["slow"]) for kind in ("train", "control")}
        self._zscores = {kind: torch.zeros(lanes) for kind in self._moments}
        self._last = {field.name: torch.zeros(lanes) for field in fields(Telemetry)}

    def begin(self, lanes: Sequence[int], control_loss: torch.Tensor, contexts: Sequence[Context]) -> None:
        """Forget what was seen in ``lanes``; ``control_loss [len(lanes)]`` is theirs before training."""
        index = torch.tensor(list(lanes))
        for tensor in (*self._memory.values(), *self._last.values(), *self._zscores.values()):
            tensor[index] = 0.0
        for averages in (self._losses, self._norms):
            averages.forget(index)
        for moments in self._moments.values():
            moments.forget(index)
        self._changes.forget(index)
        has_control = torch.tensor([context.control for context in contexts])
        start = torch.where(has_control, control_loss.clamp(min=1e-12).log(), 0.0)
        self._memory["log_start"][index] = start
        self._memory["lowest_control"][index] = start
        self._memory["start_known"][index] = has_control.float()
        targets = [torch.nan if context.target is None else context.target for context in contexts]
        self._memory["log_target"][index] = torch.tensor(targets).log()
        described = [context.features() for context in contexts]
        for name, column in self._context.items():
            column[index] = torch.tensor([each[name] for each in described])

    def observe(self, reading: Reading) -> torch.Tensor:
        """Take in what was read; the observation ``[lanes, len(OBSERVATION_NAMES)]``."""
        if reading.telemetry is not None:
            below = self._remember(reading.telemetry, reading.control_loss, reading.trained & ~reading.restored)
            self._changes.learn(reading.plans, below, reading.trained, reading.restored)
            self._memory["decisions"] = self._memory["decisions"] + reading.trained.float()
        self._changes.note(reading.plans)
        columns = {
            **self._loss_features(),
            **self._gradient_features(reading),
            **self._run_features(reading),
            **self._changes.features(),
            **{f"plan_{name}": knob.position(reading.plans) for name, knob in KNOBS.items()},
        }
        observation = torch.stack([columns[name] for name in OBSERVATION_NAMES], dim=1)
        # A run that has just diverged is shown at the limits, not as NaN: the controller must be able to see it.
        return torch.nan_to_num(observation, nan=LIMIT).clamp(-LIMIT, LIMIT)

    @property
    def log_loss(self) -> torch.Tensor:
        """How far the runs have come, ``[lanes]``: the higher of smoothed control and training loss, in logarithms.

        A control batch is small: ruined weights can get all of it right by luck, and then have no loss at all.
        """
        return torch.maximum(self._losses.get("control", "fast"), self._losses.get("train", "fast"))

    @property
    def _smoothed_control(self) -> torch.Tensor:
        """log V, averaged fast; before training log V0."""
        return torch.where(self._losses.started, self._losses.get("control", "fast"), self._memory["log_start"])

    def _loss_features(self) -> Columns:
        m, last, average, started = self._memory, self._last, self._losses.get, self._losses.started
        train = torch.where(started, last["loss"], m["log_start"].exp()).log()
        control, given = self._smoothed_control, self._context["control_given"]

        def since(value: torch.Tensor, seen: torch.Tensor = started) -> torch.Tensor:
            return torch.where(seen, value, 0.0)

        return {
            "train_progress": train - m["log_start"],
            "control_progress": given * (control - m["log_start"]),
            "train_trend_fast": since(train - average("train", "fast")),
            "train_trend_slow": since(train - average("train", "slow")),
            "train_trend_long": since(train - average("train", "long")),
            "train_zscore": self._zscores["train"],
            "control_trend": given * since(control - average("control", "slow")),
            "control_zscore": given * self._zscores["control"],
            "control_from_best": given * (control - m["lowest_control"]),
            "loss_noise": since(last["loss_std"] / last["loss"], started & (last["loss"] != 0)),
            "generalisation_gap": given * since(control - average("train", "fast")),
            "gap_trend": given * since(average("gap", "fast") - average("gap", "long")),
        }

    def _gradient_features(self, reading: Reading) -> Columns:
        last, average, updated = self._last, self._norms.get, self._norms.started
        norm = last["log_gradient_norm"]

        def since(value: torch.Tensor) -> torch.Tensor:
            return torch.where(updated, value, 0.0)

        above = norm - average("norm", "slow")
        return {
            "gradient_level": since(above),
            "gradient_zscore": since(above / (average("deviation", "slow") + 0.05)),
            "gradient_spread": last["log_gradient_norm_std"],
            "gradient_since_start": since(norm - self._memory["first_norm"]),
            "gradient_cosine": last["gradient_cosine"],
            "momentum_cosine": last["momentum_cosine"],
            "momentum_ratio": last["log_momentum_ratio"],
            "noise_ratio": last["log_noise_ratio"],
            "gradient_noise_scale": last["log_noise_scale"],
            "curvature": last["curvature"],
            "clipped_fraction": last["clipped_fraction"],
            "clip_margin": torch.where(updated, reading.plans[ROW["clip"]].log() - norm, LIMIT),
            "step_ratio": since(last["log_step_ratio"] + 6.0),
        }

    def _run_features(self, reading: Reading) -> Columns:
        """Budget, target, guard, and what the context says."""
        m, context = self._memory, self._context
        given, nothing = ~m["log_target"].isnan() & (m["start_known"] > 0), torch.zeros_like(m["log_start"])
        read = nothing if reading.samples_read is None else reading.samples_read
        return {
            **{name: context[name] for name in CONTEXT_FEATURES},
            "decisions": torch.log1p(m["decisions"]),
            "target_distance": torch.where(given, self._smoothed_control - m["log_target"], nothing),
            "target_depth": torch.where(given, m["log_start"] - m["log_target"], nothing),
            "budget_left": context["budget_given"] * reading.budget_left,
            "passes": torch.log1p(context["size_given"] * read / 10 ** (context["samples"] + 3)),
            "restored": reading.restored.float(),
            "guard_left": nothing if reading.guard_left is None else reading.guard_left,
        }

    def _remember(self, telemetry: Telemetry, control_loss: torch.Tensor, training: torch.Tensor) -> torch.Tensor:
        """Take in a decision of the runs in ``training``; how far log L was below its fast average, ``[lanes]``."""
        m = self._memory
        updating = training & (telemetry.updates > 0)
        for name, old in self._last.items():
            # Without an update there is no new gradient statistic: the last one stands.
            fresh = training if name in ("loss", "loss_std", "updates") else updating
            old.copy_(torch.where(fresh, getattr(telemetry, name), old))
        self._find_start(training)
        start = m["log_start"].exp()
        control_loss = torch.where(self._context["control_given"] > 0, control_loss, self._last["loss"])
        train, control = (
            torch.nan_to_num(loss, nan=torch.inf).clamp(start / LOSS_RANGE, start * LOSS_RANGE)
            for loss in (self._last["loss"], control_loss)
        )
        before = torch.where(self._losses.started, self._losses.get("train", "fast"), m["log_start"])
        first = updating & ~self._norms.started
        m["first_norm"] = torch.where(first, self._last["log_gradient_norm"], m["first_norm"])
        for kind, value in (("train", train / start), ("control", control / start)):
            moments = self._moments[kind]
            score = torch.where(moments.deviation > 0, moments.distance(value) / moments.deviation, 0.0)
            self._zscores[kind] = torch.where(training, score, self._zscores[kind])
            moments.update(value, training)
        logs = {"train": train.log(), "control": control.log(), "gap": control.log() - train.log()}
        self._losses.update(logs, training)
        norms = {"norm": self._last["log_gradient_norm"], "deviation": self._last["log_gradient_norm_std"]}
        self._norms.update(norms, updating)
        lowest = torch.minimum(
            m["lowest_control"], torch.nan_to_num(self._losses.get("control", "fast"), nan=torch.inf)
        )
        m["lowest_control"] = torch.where(training, lowest, m["lowest_control"])
        return before - logs["train"]

    def _find_start(self, training: torch.Tensor) -> None:
        """Where there is no control split, V0 is the training loss of the first decision."""
        m, loss = self._memory, self._last["loss"]
        first = training & (m["start_known"] == 0) & torch.isfinite(loss)
        for name in ("log_start", "lowest_control"):
            m[name] = torch.where(first, loss.clamp(min=1e-12).log(), m[name])
        m["start_known"] = torch.where(first, 1.0, m["start_known"])
