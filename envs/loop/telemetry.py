"""Loss and gradient statistics of one decision, shared by every way of running a loop.

The loss of every tick is summed. Statistics of the gradient cost passes over the parameters, so they are taken of the
updates in the last ``WINDOW`` ticks of a decision alone: of each the *products* of five vectors with one another, from
which every norm and cosine follows. ``summarise`` turns both into means, once per decision.

The five, just before an update is made: G its gradient, the mean over the microbatches, before clipping; M the momentum
before it; W the weights; and where the update before lies in the window as well, P that one's G, and S, how it moved
the weights.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from loopwright.envs.loop.arithmetic import Arithmetic, Number
from loopwright.envs.loop.averages import Floats, Mask

SUMS = ("ticks", "cost", "loss", "loss_square", "updates")  # added up over the ticks; cost in geq, loss per microbatch
WINDOW = 4  # ticks
# What is taken of an update. The first two are 1 where there was an update in the tick, and one before it in the
# window; without one, all that is about it is 0.
PROBE = ("measured", "paired", "GG", "MM", "WW", "GM", "PP", "SS", "GP", "GS", "PS", "MS")
# Means over one decision. The gradient's are NaN for a run that made no update in the window, or where two are
# needed, not two in a row.
TELEMETRY = (
    "loss",
    "loss_std",
    "updates",
    "log_gradient_norm",
    "log_gradient_norm_std",
    "gradient_cosine",  # of G with P
    "momentum_cosine",  # of G with M
    "log_momentum_ratio",  # log(|M| / |G|)
    "signal",  # squared mean of the gradient over its mean square: 1 without noise
    "curvature",  # along S, times the learning rate
    "clipped_fraction",
    "log_step_ratio",  # log(|S| / |W|)
)
Telemetry = dict[str, Number]  # by the names of TELEMETRY
TINY = 1e-30  # keeps ratios and logarithms of squared norms finite when they are zero: norms count from 1e-15 on


class Statistics(NamedTuple):
    """What was measured in one decision of ``lanes`` runs."""

    sums: Floats  # [len(SUMS), lanes]
    window: Floats  # [ticks, len(PROBE), lanes]

    @property
    def finite(self) -> Mask:
        """Whose losses, gradients and steps were finite, ``[lanes]``."""
        finite: Mask = np.logical_and(np.isfinite(self.sums).all(0), np.isfinite(self.window).all((0, 1)))
        return finite

    def total(self, name: str) -> Floats:
        """A sum of ``SUMS`` by its name, ``[lanes]``."""
        total: Floats = self.sums[SUMS.index(name)]
        return total


def summarise(statistics: Statistics, clip: Number, arithmetic: Arithmetic) -> Telemetry:
    """The telemetry of a decision in which gradients were clipped at ``clip``.

    The squared mean of the gradient is estimated by the product of successive ones, whose noise is independent: so its
    share in the mean square, the *signal*, may come out below 0. With s its average over decisions, the gradient noise
    scale tr(covariance) / |mean gradient|^2 (McCandlish et al. 2018, section 2.2) is (1 - s) / s, in batches of the
    size of an update's; it needs no second batch size.

    The curvature along S is S.H.S / S.P.S, with H S the difference of the gradients before and after and P the
    optimizer's own metric, in which -P S is the learning rate times the momentum that made it: so the quotient below is
    the curvature times the learning rate. Above 2, descent on a quadratic diverges. The two gradients are of different
    microbatches, so that noise is read as curvature as well.
    """
    xp = arithmetic
    window = xp.unpack(statistics.window.reshape(-1, statistics.window.shape[-1]))
    # Ticks without an update count for nothing: with them there are always as many numbers.
    missing = [xp.fill(0.0)] * (len(PROBE) * WINDOW - len(window))
    numbers = [*xp.unpack(statistics.sums), clip, *window, *missing]
    return dict(zip(TELEMETRY, xp.evaluate(_summarise, numbers), strict=True))


def _summarise(xp: Arithmetic, numbers: Sequence[Number]) -> list[Number]:
    ticks, _, loss_sum, loss_square, updates, clip, *window = numbers
    loss = loss_sum / ticks
    count = pairs = cosine = along = momentum = step = signal = square = turn = slope = clipped = 0.0
    log_norms = []
    for on, pair, gg, mm, ww, gm, pp, ss, gp, gs, ps, ms in zip(*[iter(window)] * len(PROBE), strict=True):
        log_norm = 0.5 * xp.log(gg + TINY)
        log_norms.append((on, log_norm))
        count, pairs = count + on, pairs + pair
        cosine = cosine + gp / xp.sqrt(gg + TINY) / xp.sqrt(pp + TINY)
        along = along + gm / xp.sqrt(gg + TINY) / xp.sqrt(mm + TINY)
        momentum = momentum + on * (0.5 * xp.log(mm + TINY) - log_norm)
        step = step + pair * 0.5 * (xp.log(ss + TINY) - xp.log(ww + TINY))
        signal, square = signal + gp, square + pair * gg
        turn, slope = turn + gs - ps, slope - ms
        clipped = clipped + xp.where(gg > clip * clip, 1.0, 0.0)
    mean = xp.divide(sum(on * value for on, value in log_norms), count)
    spread = sum(on * (value - mean) * (value - mean) for on, value in log_norms)
    nothing = xp.where(pairs > 0, 0.0, math.nan)
    return [  # as TELEMETRY names them
        loss,
        xp.sqrt(xp.maximum(loss_square / ticks - loss * loss, 0.0)),
        updates,
        mean,
        xp.sqrt(xp.divide(spread, count)),
        xp.divide(cosine, pairs),
        xp.divide(along, count),
        xp.divide(momentum, count),
        xp.divide(signal, square),
        xp.where(slope == 0, nothing, xp.divide(turn, slope)),
        xp.divide(clipped, count),
        xp.divide(step, pairs),
    ]
