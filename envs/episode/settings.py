"""EpisodeSettings: how an inner run is cut into decisions, what it may cost and what it earns."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from loopwright.envs.engine.fusing import has_compiler
from loopwright.envs.engine.prices import PriceList, find_price_list
from loopwright.envs.episode.reward import find_reward
from loopwright.envs.loop.checks import (
    ABOVE_ZERO,
    MOST_SAMPLES,
    MOST_TICKS,
    check_device,
    check_kind,
    check_number,
    check_whole,
)

COMPILING_PAYS = 4  # lanes of a shape: with fewer it takes long to gain the compiler's half minute


@dataclass(frozen=True)
class EpisodeSettings:
    """How an inner run is cut into decisions and what it may cost.

    Attributes:
        microbatch: samples per tick.
        ticks_per_decision: ticks under one plan.
        control_batch: samples of the control split looked at, and charged, per decision.
        budget_factor: the budget, in multiples of the task's calibrated cost to target C*.
        prices: what updates cost (``envs.engine.prices``): "gradients" (nothing), "measured", geq by optimizer, or a
            list of one's own; "drawn", or another distribution, in an environment. C* is priced alike.
        reward: what a decision earns: "progress", "log-progress", "time" or "anytime" (``envs.episode.reward``).
        guard: interventions of the guard per episode; 0 switches it off, and divergence then ends the episode.
        discount: the agent's discount per decision, in (0, 1], which the shaping by progress takes into account.
        compile: fuse the tick with ``torch.compile``; "auto" does where there is a compiler and enough runs at once
            that it pays.
        device: where the lanes live.
    """

    microbatch: int = 16
    ticks_per_decision: int = 16
    control_batch: int = 16
    budget_factor: float = 3.0
    prices: str | Mapping[str, float] | PriceList = "gradients"
    reward: str = "progress"
    guard: int = 5
    discount: float = 1.0
    compile: bool | str = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_whole("microbatch", self.microbatch, 1, MOST_SAMPLES)
        check_whole("ticks_per_decision", self.ticks_per_decision, 1, MOST_TICKS)
        check_whole("control_batch", self.control_batch, 1, MOST_SAMPLES)
        check_whole("guard", self.guard, 0)
        check_number("budget_factor", self.budget_factor, "be finite and above 0", *ABOVE_ZERO)
        check_number("discount", self.discount, "lie in (0, 1]", ABOVE_ZERO[0], 1)
        if self.compile != "auto":
            check_kind("compile", self.compile, bool, "True, False or 'auto'")
        check_device(self.device)
        find_reward(self.reward)  # raises for an unknown name
        find_price_list(self.prices)

    def compiles(self, lanes: int) -> bool:
        """Whether the tick of so many lanes is fused."""
        return lanes >= COMPILING_PAYS and has_compiler() if self.compile == "auto" else bool(self.compile)

    @property
    def price_list(self) -> PriceList:
        return find_price_list(self.prices)

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values; of a price list of one's own the name."""
        prices = dict(self.prices) if isinstance(self.prices, Mapping) else self.price_list.name
        return asdict(replace(self, prices="gradients")) | {"prices": prices}
