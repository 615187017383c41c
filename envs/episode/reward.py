"""Reward: what a decision was worth. Progress is counted in baseline-equivalent cost, so that tasks compare.

E(L) is the geq at which the task's best static configuration first reaches loss L (its calibrated median curve,
interpolated); phi = min(E(best loss so far) / C*, 1), with C* its cost to the target (``progress`` measures it).
``REWARDS`` holds the choices.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from loopwright.envs.loop.errors import UnknownNameError

LEAST_SHARE = 0.02  # of the budget: below it a run costs no less


@dataclass(frozen=True)
class Judgement:
    """What a reward may be made of, each ``[lanes]``.

    Attributes:
        phi_before, phi: progress before and after the decision, in [0, 1]; 1 on a hit.
        share: what the decision cost, as a share of the budget.
        spent: share of the budget spent, this decision included.
        hit, missed, diverged: whether the episode has just ended so.
        credit: phi, where an open run has just ended with its budget; 0 elsewhere.
        discount: the agent's, per decision, in (0, 1].
    """

    phi_before: torch.Tensor
    phi: torch.Tensor
    share: torch.Tensor
    spent: torch.Tensor
    hit: torch.Tensor
    missed: torch.Tensor
    diverged: torch.Tensor
    credit: torch.Tensor
    discount: float = 1.0


def reward_progress(j: Judgement) -> torch.Tensor:
    """``reward_time`` + discount x phi after - phi before, with phi 0 where an episode has ended.

    Potential-based shaping (Ng et al. 1999, theorem 1): it moves no optimum, at the discount it is given. Without a
    discount an episode that hits returns 1 - the share of the budget it used, whatever its way, and one that misses or
    diverges -1, however near it came. An open run that ends with its budget returns phi - 1.
    """
    return reward_time(j) + _shape(j)


def reward_log_progress(j: Judgement) -> torch.Tensor:
    """As ``reward_progress`` with the bill in logarithms, as the judge averages costs: half the work is half the work.

    Without a discount a hit returns 1 - log(share / LEAST_SHARE) / 2 with the share of the budget used, and a miss what
    a hit with all of it would, less 1. An open run that ends with its budget returns what a hit with 1 / phi times that
    budget would, but no less than a miss: the logarithm of how much faster it was than the best static configuration,
    whether it hit or not. Under ``reward_progress`` a run that could hit with a tenth of the budget has little to gain
    by hitting with a twentieth, and everything is about not missing.
    """
    before = (j.spent - j.share).clamp(min=LEAST_SHARE)
    now = torch.where(j.diverged, 1.0, j.spent).clamp(min=LEAST_SHARE)
    credit = (1 + 0.5 * torch.log(j.credit)).clamp(min=0)
    return j.hit.float() + credit - 0.5 * torch.log(now / before) + _shape(j)


def reward_time(j: Judgement) -> torch.Tensor:
    """1 on a hit, less cost / budget. A run that diverges pays for the budget it has not used, as a miss has.

    An open run that ends with its budget earns phi.
    """
    return j.hit.float() + j.credit - _bill(j)


def reward_anytime(j: Judgement) -> torch.Tensor:
    """phi times cost / budget: the return is the mean progress over the budget, in [0, 1].

    From a hit on progress stays 1; a run that diverged earns nothing more.
    """
    return j.phi * j.share + torch.where(j.hit, 1 - j.spent, 0.0)


def _shape(j: Judgement) -> torch.Tensor:
    ended = j.hit | j.missed | j.diverged
    return torch.where(ended, 0.0, j.discount * j.phi) - j.phi_before


def _bill(j: Judgement) -> torch.Tensor:
    return torch.where(j.diverged, j.share + 1 - j.spent, j.share)


REWARDS: dict[str, Callable[[Judgement], torch.Tensor]] = {
    "progress": reward_progress,
    "log-progress": reward_log_progress,
    "time": reward_time,
    "anytime": reward_anytime,
}


def find_reward(name: str) -> Callable[[Judgement], torch.Tensor]:
    """The reward of that name. Raises ``UnknownNameError`` otherwise."""
    if name not in REWARDS:
        raise UnknownNameError("reward", name, list(REWARDS))
    return REWARDS[name]
