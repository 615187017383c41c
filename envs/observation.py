"""What a controller sees: telemetry, plan and budget as one named, bounded, scale-invariant float32 vector.

Every feature is a ratio, a cosine, a fraction or a position, most of them logarithms, clipped to [-LIMIT, LIMIT]:
multiplying the loss by a constant changes none of those about loss and gradient. Nothing here comes from the target
split except the target itself, which is part of the task that the controller is given.
"""

from collections.abc import Sequence
from dataclasses import fields
from enum import StrEnum
from typing import NamedTuple

import torch

from loopwright.envs.knobs import KNOBS
from loopwright.envs.plan import ROW
from loopwright.envs.telemetry import RunningMoments, Telemetry

OBSERVATION_VERSION = 2
LIMIT = 5.0
LOSS_RANGE = 1e3  # a loss counts as at most so many times V0, or so many times less: it may be 0, or infinite
HALF_LIVES = {"fast": 2.0, "slow": 8.0, "long": 32.0}  # of the running averages, in decisions


# What each running average is divided by: how much of it is not the zeros it started from.
LEVELS = dict.fromkeys(("level", "train", "control"), "level") | dict.fromkeys(
    ("norm_level", "norm", "spread"), "norm_level"
)


class Feature(NamedTuple):
    """Name, formula, range before clipping to +-LIMIT, and what of the loss it is blind to: "scale", "affine" or ""."""

    name: str
    formula: str
    range: str
    invariance: str


# L is the mean training loss of the last decision, V the loss on the last control batch, L0 and V0 the control loss
# before training; v the running average of log V (fast); G an update's gradient; m the momentum; d the step before.
FEATURES: tuple[Feature, ...] = tuple(
    Feature(*row)
    for row in (
        ("train_progress", "log(L / V0)", "any", "scale"),
        ("control_progress", "v - log V0", "any", "scale"),
        ("train_trend_fast", "log L minus its fast average", "any", "scale"),
        ("train_trend_slow", "log L minus its slow average", "any", "scale"),
        ("train_trend_long", "log L minus its long average", "any", "scale"),
        ("train_zscore", "(L - its slow average) / its slow standard deviation", "any", "affine"),
        ("control_trend", "v minus the slow average of log V", "any", "scale"),
        ("control_zscore", "(V - its slow average) / its slow standard deviation", "any", "affine"),
        ("control_from_best", "v minus the lowest v so far", "0 up", "scale"),
        ("loss_noise", "std / mean of the loss within the decision; 0 where all losses are 0", "0 up", "scale"),
        ("generalisation_gap", "v minus the fast average of log L", "any", "scale"),
        ("gradient_level", "log|G| minus its slow average", "any", "scale"),
        ("gradient_zscore", "that over the slow average of the spread of log|G|", "any", "scale"),
        ("gradient_spread", "std of log|G| within the decision", "0 up", "scale"),
        ("gradient_since_start", "log|G| minus log|G| of the first decision with an update", "any", "scale"),
        ("gradient_cosine", "cosine of G with the G before", "-1 to 1", "scale"),
        ("momentum_cosine", "cosine of G with m", "-1 to 1", "scale"),
        ("momentum_ratio", "log(|m| / |G|): how much the averaging cancels", "any", "scale"),
        ("noise_ratio", "log of rms microbatch gradient over rms G", "any", "scale"),
        ("gradient_noise_scale", "log of tr(cov G) / |mean G|^2, from successive G (McCandlish et al. 2018)", "any",
         "scale"),
        ("curvature", "d.H.d / d.P.d x learning rate, from successive G; 2 is the edge of stability", "any", "scale"),
        ("clipped_fraction", "share of updates that were clipped", "0 to 1", ""),
        ("clip_margin", "log(threshold / typical |G|); LIMIT when off", "any", ""),
        ("step_ratio", "log(|step| / |weights|) + 6", "any", ""),
        ("budget_left", "fraction of the budget left", "0 to 1", ""),
        ("decisions", "log(1 + decisions taken)", "0 up", ""),
        ("target_given", "1 if there is a target, else 0", "0 or 1", ""),
        ("target_distance", "v - log target; 0 without one", "any", "scale"),
        ("target_depth", "log(V0 / target); 0 without one", "any", "scale"),
        ("restored", "1 if the guard restored the run after the last decision, else 0", "0 or 1", ""),
        ("guard_left", "share of the guard's interventions left; 0 when it is off", "0 to 1", ""),
    )
)  # fmt: skip
OBSERVATION_NAMES = tuple(feature.name for feature in FEATURES) + tuple(f"plan_{knob}" for knob in KNOBS)


class Needs(StrEnum):
    """What a controller has to be shown. What it is charged for, what is kept of a run, and its time follow from it.

    NOTHING is free. CONTROL_LOSS shows ``control_progress`` alone and charges the look at the control split.
    OBSERVATION charges the same and shows everything, for which a loop has to keep statistics of the gradient.
    """

    NOTHING = "nothing"
    CONTROL_LOSS = "control loss"
    OBSERVATION = "observation"

    @property
    def looks(self) -> bool:
        """Whether the control split is looked at, and charged."""
        return self is not Needs.NOTHING

    @property
    def names(self) -> tuple[str, ...]:
        """The features that are shown; the others of an observation are 0."""
        shown = {Needs.NOTHING: (), Needs.CONTROL_LOSS: ("control_progress",), Needs.OBSERVATION: OBSERVATION_NAMES}
        return shown[self]


class Observer:
    """Keeps the running averages that the features need, for ``lanes`` runs, and computes the observation."""

    def __init__(self, lanes: int) -> None:
        names = ["start", "target", "best", "first_norm", "decisions"]
        kinds = (*("level", "norm_level"), *("train", "control", "norm", "spread"))
        names += [f"{kind}_{speed}" for kind in kinds for speed in HALF_LIVES]
        self._memory = {name: torch.zeros(lanes) for name in names}
        self._moments = {kind: RunningMoments(lanes, HALF_LIVES["slow"]) for kind in ("train", "control")}
        self._zscores = {kind: torch.zeros(lanes) for kind in self._moments}
        self._last = {field.name: torch.zeros(lanes) for field in fields(Telemetry)}

    def begin(self, lanes: Sequence[int], control_loss: torch.Tensor, targets: Sequence[float | None]) -> None:
        """Forget what was seen in ``lanes``; ``control_loss [len(lanes)]`` is theirs before training."""
        index = torch.tensor(list(lanes))
        for tensor in (*self._memory.values(), *self._last.values(), *self._zscores.values()):
            tensor[index] = 0.0
        for moments in self._moments.values():
            moments.forget(index)
        start = control_loss.clamp(min=1e-12).log()
        self._memory["start"][index] = start
        self._memory["best"][index] = start
        self._memory["target"][index] = torch.tensor([torch.nan if t is None else t for t in targets]).log()

    def observe(
        self,
        telemetry: Telemetry | None,
        control_loss: torch.Tensor,
        plans: torch.Tensor,
        budget_left: torch.Tensor,
        training: torch.Tensor,
        restored: torch.Tensor | None = None,
        guard_left: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The observation ``[lanes, len(OBSERVATION_NAMES)]``.

        ``training [lanes]`` is False for a lane that has not trained since ``begin``: its telemetry is not used.
        ``telemetry`` may be None when no lane has. ``restored`` marks the lanes whose last decision the guard undid:
        what was measured in it is forgotten with it. ``guard_left`` is the share of the guard's interventions left.
        """
        m = self._memory
        undone = torch.zeros_like(training) if restored is None else restored
        if telemetry is not None:
            self._remember(telemetry, control_loss, training & ~undone)
            m["decisions"] = m["decisions"] + training.float()
        last, started = self._last, m["level_fast"] > 0  # whether any decision that stands was seen
        updated = m["norm_level_fast"] > 0  # whether any of those made an update
        train = torch.where(started, last["loss"], m["start"].exp()).log()
        given = ~m["target"].isnan()
        level = last["log_gradient_norm"]
        control = torch.where(started, self._average("control", "fast"), m["start"])
        nothing = torch.zeros_like(train)

        def since(value: torch.Tensor, seen: torch.Tensor = started) -> torch.Tensor:
            return torch.where(seen, value, 0.0)

        columns = {
            "train_progress": train - m["start"],
            "control_progress": control - m["start"],
            "train_trend_fast": since(train - self._average("train", "fast")),
            "train_trend_slow": since(train - self._average("train", "slow")),
            "train_trend_long": since(train - self._average("train", "long")),
            "train_zscore": self._zscores["train"],
            "control_trend": since(control - self._average("control", "slow")),
            "control_zscore": self._zscores["control"],
            "control_from_best": control - m["best"],
            "loss_noise": since(last["loss_std"] / last["loss"], started & (last["loss"] != 0)),
            "generalisation_gap": since(control - self._average("train", "fast")),
            "gradient_level": since(level - self._average("norm", "slow"), updated),
            "gradient_zscore": since(
                (level - self._average("norm", "slow")) / (self._average("spread", "slow") + 0.05), updated
            ),
            "gradient_spread": last["log_gradient_norm_std"],
            "gradient_since_start": since(level - m["first_norm"], updated),
            "gradient_cosine": last["gradient_cosine"],
            "momentum_cosine": last["momentum_cosine"],
            "momentum_ratio": last["log_momentum_ratio"],
            "noise_ratio": last["log_noise_ratio"],
            "gradient_noise_scale": last["log_noise_scale"],
            "curvature": last["curvature"],
            "clipped_fraction": last["clipped_fraction"],
            "clip_margin": torch.where(updated, plans[ROW["clip"]].log() - level, LIMIT),
            "step_ratio": since(last["log_step_ratio"] + 6.0, updated),
            "budget_left": budget_left,
            "decisions": torch.log1p(m["decisions"]),
            "target_given": given.float(),
            "target_distance": torch.where(given, control - m["target"], nothing),
            "target_depth": torch.where(given, m["start"] - m["target"], nothing),
            "restored": undone.float(),
            "guard_left": nothing if guard_left is None else guard_left,
        }
        columns |= {f"plan_{name}": knob.position(plans) for name, knob in KNOBS.items()}
        observation = torch.stack([columns[name] for name in OBSERVATION_NAMES], dim=1)
        # A run that has just diverged is shown at the limits, not as NaN: the controller must be able to see it.
        return torch.nan_to_num(observation, nan=LIMIT).clamp(-LIMIT, LIMIT)

    @property
    def level(self) -> torch.Tensor:
        """How far the run has come, in logarithms, ``[lanes]``: the higher of smoothed control and training loss.

        A control batch is small: ruined weights can get all of it right by luck, and then have no loss at all.
        """
        return torch.maximum(self._average("control", "fast"), self._average("train", "fast"))

    def _average(self, kind: str, speed: str) -> torch.Tensor:
        """The bias-corrected running average (the weight of the zeros it started from is divided out)."""
        return self._memory[f"{kind}_{speed}"] / self._memory[f"{LEVELS[kind]}_{speed}"].clamp(min=1e-6)

    def _remember(self, telemetry: Telemetry, control_loss: torch.Tensor, training: torch.Tensor) -> None:
        m = self._memory
        for name, old in self._last.items():
            new = getattr(telemetry, name)
            # Without an update there is no new gradient statistic: the last one stands.
            fresh = training if name in ("loss", "loss_std", "updates") else training & (telemetry.updates > 0)
            old.copy_(torch.where(fresh, new, old))
        start = m["start"].exp()
        train, control = (
            torch.nan_to_num(loss, nan=torch.inf).clamp(start / LOSS_RANGE, start * LOSS_RANGE)
            for loss in (self._last["loss"], control_loss)
        )
        updating = training & (telemetry.updates > 0)
        first = updating & (m["norm_level_fast"] == 0)
        m["first_norm"] = torch.where(first, self._last["log_gradient_norm"], m["first_norm"])
        for kind, value in (("train", train / start), ("control", control / start)):
            moments = self._moments[kind]
            score = torch.where(moments.spread > 0, moments.distance(value) / moments.spread, 0.0)
            self._zscores[kind] = torch.where(training, score, self._zscores[kind])
            moments.update(value, training)
        # Without an update there is no new norm either.
        taking = {"level": training, "norm_level": updating}
        values = {
            "level": torch.ones_like(train),
            "norm_level": torch.ones_like(train),
            "train": train.log(),
            "control": control.log(),
            "norm": self._last["log_gradient_norm"],
            "spread": self._last["log_gradient_norm_std"],
        }
        for speed, half_life in HALF_LIVES.items():
            weight = 1 - 0.5 ** (1 / half_life)
            for kind, value in values.items():
                taken, old = taking[LEVELS[kind]], m[f"{kind}_{speed}"]
                m[f"{kind}_{speed}"] = torch.where(taken, old + weight * (value - old), old)
        lowest = torch.minimum(m["best"], torch.nan_to_num(self._average("control", "fast"), nan=torch.inf))
        m["best"] = torch.where(training, lowest, m["best"])
