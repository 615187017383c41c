"""Context: what is known of a run before it trains. A user may have none of it, and a policy has to do without."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from loopwright.envs.loop.checks import ABOVE_ZERO, check_number
from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.envs.loop.plan import OPTIMIZERS

LEAST_PRICE = 1e-3  # in passes over a microbatch: what costs less shows as this
CONTEXT_FEATURES = (
    *("control_given", "target_given", "budget_given", "size_given", "prices_given"),
    *("parameters", "samples", "budget_passes", *(f"price_{name}" for name in OPTIMIZERS)),
)
INFORMATION = ("control", "target", "budget", "size", "prices")  # what can be absent


@dataclass(frozen=True)
class Context:
    """What a controller may know of a run besides what it measures.

    Attributes:
        control: whether there is a control split to look at.
        target: the loss that is to be reached; None where none is set.
        budget: geq that may be spent; None where that is open.
        parameters, samples: how many the model has, and how many different ones there are to train on; None where that
            is not known, which then goes for both.
        prices: geq that one update of each optimizer costs, by name; None where they were not measured.
        microbatch: samples of a tick.
    """

    control: bool = True
    target: float | None = None
    budget: float | None = None
    parameters: int | None = None
    samples: int | None = None
    prices: Mapping[str, float] | None = None
    microbatch: int = 16

    def without(self, sources: Collection[str]) -> "Context":
        """The same with some of ``INFORMATION`` withheld."""
        for source in sources:
            check_information(source)
        absent: dict[str, dict[str, bool | None]] = {
            "control": {"control": False}, "target": {"target": None}, "budget": {"budget": None},
            "size": {"parameters": None, "samples": None}, "prices": {"prices": None},
        }  # fmt: skip
        changes: dict[str, bool | None] = {}
        for source in sources:
            changes |= absent[source]
        return replace(self, **changes)  # type: ignore[arg-type]

    def features(self) -> dict[str, float]:
        """The features of an observation that this decides alone; 0 for what is not given."""
        found = dict.fromkeys(CONTEXT_FEATURES, 0.0)
        given = {"control": self.control, "target": self.target is not None, "budget": self.budget is not None}
        found |= {f"{name}_given": float(known) for name, known in given.items()}
        if self.parameters is not None and self.samples is not None:
            found |= {"size_given": 1.0, "parameters": math.log10(self.parameters) - 4,
                      "samples": math.log10(self.samples) - 3}  # fmt: skip
            if self.budget is not None:
                found["budget_passes"] = math.log(self.budget / self.samples)
        if self.prices is not None:
            found["prices_given"] = 1.0
            for name in OPTIMIZERS:
                passes = self.prices[name] / self.microbatch
                found[f"price_{name}"] = math.log10(max(passes, LEAST_PRICE))
        return found


def check_information(source: str) -> None:
    """Raises ``UnknownNameError`` for what is not one of ``INFORMATION``."""
    if source not in INFORMATION:
        raise UnknownNameError("kind of information", source, list(INFORMATION))


def check_prices(prices: Mapping[str, float], names: Collection[str]) -> None:
    """Raises ``LoopwrightError`` unless there is a price of 0 or more, and finite, for each of ``names``."""
    for name in names:
        if name not in prices:
            raise LoopwrightError(f"no price for an update of {name}; prices were given for {', '.join(prices)}")
        check_number(f"the price of an update of {name}", prices[name], "be finite and 0 or more", 0, ABOVE_ZERO[1])
