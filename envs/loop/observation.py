"""What a controller sees: telemetry, plan and budget as one named, bounded, scale-invariant float32 vector.

Here the features have their names; ``observer`` computes them.

Every feature is a ratio, a cosine, a fraction or a position, most of them logarithms, clipped to [-LIMIT, LIMIT]:
multiplying the loss by a constant changes none of those about loss and gradient. Nothing here comes from the target
split except the target itself, which is part of the task that the controller is given. What a run lacks (``context``)
shows as 0, beside a flag that says so.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from loopwright.envs.loop.knobs import KNOBS
from loopwright.envs.loop.plan import OPTIMIZERS

OBSERVATION_VERSION = 4
LIMIT = 5.0


class Feature(NamedTuple):
    """Name, formula, range before clipping to +-LIMIT, and what of the loss it is blind to: "scale", "affine" or ""."""

    name: str
    formula: str
    range: str
    invariance: str


# L is the mean training loss of the last decision, V the loss on the last control batch, V0 the control loss before
# training; v the running average of log V (fast); G an update's gradient; m the momentum; d the step before: of the
# updates at the end of the decision (``telemetry``). Where there is no control split, L stands for V, and that of the
# first decision for V0.
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
        ("gap_trend", "that minus its long average: overfitting, where the loss still falls", "any", "scale"),
        ("gradient_level", "log|G| minus its slow average", "any", "scale"),
        ("gradient_zscore", "that over the slow average of the spread of log|G|", "any", "scale"),
        ("gradient_spread", "std of log|G| within the decision", "0 up", "scale"),
        ("gradient_since_start", "log|G| minus log|G| of the first decision with an update", "any", "scale"),
        ("gradient_cosine", "cosine of G with the G before", "-1 to 1", "scale"),
        ("momentum_cosine", "cosine of G with m", "-1 to 1", "scale"),
        ("momentum_ratio", "log(|m| / |G|): how much the averaging cancels", "any", "scale"),
        ("gradient_noise_scale", "log of tr(cov G) / |mean G|^2 by successive G, fast average (McCandlish et al. 2018)",
         "any", "scale"),
        ("curvature", "d.H.d / d.P.d x learning rate, from successive G; 2 is the edge of stability", "any", "scale"),
        ("clipped_fraction", "share of those updates that were clipped", "0 to 1", ""),
        ("clip_margin", "log(threshold / typical |G|); LIMIT when off", "any", ""),
        ("step_ratio", "log(|step| / |weights|) + 6", "any", ""),
        ("rate_since_start", "log(learning rate / that at the start)", "any", ""),
        ("rate_from_safe", "log(learning rate / the largest under which the loss did not rise); 0 before one", "any",
         "scale"),
        ("decisions", "log(1 + decisions taken)", "0 up", ""),
        ("control_given", "1 if there is a control split, else 0", "0 or 1", ""),
        ("target_given", "1 if there is a target, else 0", "0 or 1", ""),
        ("target_distance", "v - log target", "any", "scale"),
        ("target_depth", "log(V0 / target)", "any", "scale"),
        ("budget_given", "1 if there is a budget, else 0", "0 or 1", ""),
        ("budget_left", "fraction of the budget left", "0 to 1", ""),
        ("budget_passes", "log of the budget in passes over the training samples; 0 without ``size_given``", "any", ""),
        ("size_given", "1 if the numbers of parameters and of samples are known, else 0", "0 or 1", ""),
        ("parameters", "log10 of the number of parameters, minus 4", "any", ""),
        ("samples", "log10 of the number of different training samples, minus 3", "any", ""),
        ("passes", "log(1 + passes over the training samples)", "0 up", ""),
        ("prices_given", "1 if the prices of updates are known, else 0", "0 or 1", ""),
        *((f"price_{name}", f"log10 of what an update of {name} costs in passes over a microbatch", "-3 up", "")
          for name in OPTIMIZERS),
        ("restored", "1 if the guard restored the run after the last decision, else 0", "0 or 1", ""),
        ("guard_left", "share of the guard's interventions left; 0 when it is off", "0 to 1", ""),
    )
)  # fmt: skip
STANDING = tuple(name for name, knob in KNOBS.items() if not knob.command)  # knobs that stay where they were moved to
OBSERVATION_NAMES = (
    *(feature.name for feature in FEATURES),
    *(f"brought_{knob}" for knob in STANDING),
    *(f"plan_{knob}" for knob in KNOBS),
)


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


def name_features(row: Sequence[float], needs: Needs = Needs.OBSERVATION) -> dict[str, float] | None:
    """The features of an observation that were shown, by name; None where nothing was."""
    named = dict(zip(OBSERVATION_NAMES, row, strict=True))
    return {name: named[name] for name in needs.names} or None
