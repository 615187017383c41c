"""Price lists: what one update of each optimizer costs, in geq. Counting gradients alone would give updates away.

What an optimizer does with a gradient takes time too, many gradients' worth on a small network, next to nothing on a
large batch. ``gradients`` is the list of the latter, where nothing but gradients counts; ``measured`` holds seconds of
an update over seconds of one sample's gradient, in one thread of a plain loop (``loopwright prices`` measures them).
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from typing_extensions import TypedDict

from loopwright.envs.engine.threads import limit_threads
from loopwright.envs.loop.checks import check_kind
from loopwright.envs.loop.context import check_prices
from loopwright.envs.loop.controller import OwnOptimizer
from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.envs.loop.plan import OPTIMIZERS, LoopPlan
from loopwright.envs.loop.untrusted import Count, Name, Positive, Reader, strict
from loopwright.envs.loop.update_rules import Parts, take_step
from loopwright.inner_tasks.losses import compute_losses
from loopwright.inner_tasks.models import ModelSpec, find_output_shape

PRICES_FILE = Path(__file__).with_name("prices.json")
CHEAPEST = 0.01  # of what was measured on the smallest model: where prices begin that are drawn
PRICE_ROUNDS, LEAST_SECONDS = 7, 0.03  # how often a price is measured, and for how long each time

Prices = Mapping[str, float]  # geq of an update, by the name of what makes it


@strict
class _Entry(TypedDict):
    """What was measured on one model: passes over a microbatch that an update takes, by what makes it."""

    model: Name
    parameters: Count
    microbatch: Count
    passes: dict[Name, Positive]


@strict
class _File(TypedDict):
    provenance: dict[str, Any]
    entries: list[_Entry]


_PRICES = Reader[_File](_File)


class PriceList(ABC):
    """Says what an update costs. ``name`` is what records call it."""

    name: str

    @abstractmethod
    def quote(self, model: ModelSpec, microbatch: int, names: Sequence[str] = OPTIMIZERS) -> dict[str, float]:
        """Geq of an update of this model by each of ``names``. Raises ``LoopwrightError`` for what is not listed."""

    def draw(self, rng: np.random.Generator, model: ModelSpec, microbatch: int) -> dict[str, float]:
        """The prices of one episode: those quoted, unless the list is a distribution."""
        return self.quote(model, microbatch)


class Gradients(PriceList):
    """Updates cost nothing."""

    name = "gradients"

    def quote(self, model: ModelSpec, microbatch: int, names: Sequence[str] = OPTIMIZERS) -> dict[str, float]:
        return dict.fromkeys(names, 0.0)


class Measured(PriceList):
    """What was measured and stored, model by model."""

    name = "measured"

    def quote(self, model: ModelSpec, microbatch: int, names: Sequence[str] = OPTIMIZERS) -> dict[str, float]:
        passes = read_prices().get((repr(model), microbatch))
        if passes is None:
            raise LoopwrightError(
                f"no prices were measured for {model} at microbatch {microbatch}; give prices as a mapping, for "
                f"instance those of loopwright.measure_prices, or use prices='gradients'"
            )
        check_prices(passes, names)
        return {name: microbatch * passes[name] for name in names}


class Given(PriceList):
    """The same prices whatever the model: geq of an update by the optimizer's name."""

    name = "given"

    def __init__(self, prices: Prices) -> None:
        check_prices(prices, OPTIMIZERS)
        self.prices = dict(prices)

    def quote(self, model: ModelSpec, microbatch: int, names: Sequence[str] = OPTIMIZERS) -> dict[str, float]:
        check_prices(self.prices, names)
        return {name: self.prices[name] for name in names}


class Drawn(PriceList):
    """Other prices for every episode, so that a policy learns to read them.

    A third of the episodes have free updates, another the prices that were measured on some model. In the last each
    price is drawn log-uniformly, from ``CHEAPEST`` of what was measured on the smallest model up to what was measured
    on the widest; then they are put in the order they have in life.
    """

    name = "drawn"

    def quote(self, model: ModelSpec, microbatch: int, names: Sequence[str] = OPTIMIZERS) -> dict[str, float]:
        raise LoopwrightError("prices='drawn' is a distribution: an environment draws from it, nothing else can")

    def draw(self, rng: np.random.Generator, model: ModelSpec, microbatch: int) -> dict[str, float]:
        kind = rng.integers(3)
        if kind == 0:
            return dict.fromkeys(OPTIMIZERS, 0.0)
        if kind == 1:
            entries = list(read_prices().values())
            entry = entries[rng.integers(len(entries))]
            return {name: microbatch * entry[name] for name in OPTIMIZERS}
        low, high = find_price_range()
        passes = {name: 10 ** rng.uniform(np.log10(low[name]), np.log10(high[name])) for name in OPTIMIZERS}
        in_order = sorted(OPTIMIZERS, key=high.__getitem__)
        return {n: microbatch * p for n, p in zip(in_order, sorted(passes.values()), strict=True)}


_LISTS: dict[str, PriceList] = {own.name: own for own in (Gradients(), Measured(), Drawn())}


def find_price_list(prices: str | Prices | PriceList) -> PriceList:
    """A list by its name, or one of the ``prices`` given. Raises ``UnknownNameError`` for other names."""
    if isinstance(prices, PriceList):
        return prices
    if isinstance(prices, str):
        if prices not in _LISTS:
            raise UnknownNameError("price list", prices, list(_LISTS))
        return _LISTS[prices]
    check_kind("prices", prices, Mapping, "the name of a price list, a PriceList, or geq by the name of an optimizer")
    return Given(prices)


@lru_cache(maxsize=1)
def read_prices() -> dict[tuple[str, int], dict[str, float]]:
    """What was measured: passes over a microbatch that an update takes, by model, microbatch and name."""
    if not PRICES_FILE.exists():
        raise LoopwrightError(f"{PRICES_FILE.name} is missing; run: loopwright prices")
    entries = _PRICES.read(PRICES_FILE)["entries"]
    return {(entry["model"], entry["microbatch"]): entry["passes"] for entry in entries}


@lru_cache(maxsize=1)
def find_price_range() -> tuple[dict[str, float], dict[str, float]]:
    """The lowest and the highest price of each optimizer that ``Drawn`` draws, in passes over a microbatch."""
    entries = list(read_prices().values())
    smallest = {name: min(entry[name] for entry in entries) for name in OPTIMIZERS}
    return {n: CHEAPEST * p for n, p in smallest.items()}, {n: max(e[n] for e in entries) for n in OPTIMIZERS}


def measure_prices(
    model: ModelSpec, microbatch: int = 16, others: Mapping[str, OwnOptimizer] | None = None
) -> dict[str, float]:
    """Geq that an update of this model costs here, by optimizer: ``OPTIMIZERS``, and ``others`` of other libraries.

    In one thread: the seconds of an update over those of one sample's gradient in a microbatch. The median of several
    rounds, in which all take turns.
    """
    with limit_threads(1):
        loop = _Timed(model, microbatch)
        own = [(name, loop.make_update(name)) for name in OPTIMIZERS]
        libraries = [(name, loop.make_library_update(optimizer)) for name, optimizer in (others or {}).items()]
        work = [("gradient", loop.take_gradient), *own, *libraries]
        rounds = [[_time(function) for _, function in work] for _ in range(PRICE_ROUNDS)]
    gradient, *updates = (median(seconds) for seconds in zip(*rounds, strict=True))
    found: dict[str, float] = {}
    for (name, _), seconds in zip(work[1:], updates, strict=True):
        # Who wants a rule that a library has as well takes the faster of the two.
        found[name] = min(found.get(name, math.inf), microbatch * seconds / gradient)
    return found


class _Timed:
    """A model, a microbatch and its gradient, to time what is done with them."""

    def __init__(self, model: ModelSpec, microbatch: int) -> None:
        self.network: nn.Sequential = model.build()
        generator = torch.Generator().manual_seed(0)
        shape = (microbatch, *model.input_shape)
        vocabulary = model.vocabulary
        if vocabulary is None:
            self.inputs = torch.randn(shape, generator=generator)
        else:
            self.inputs = torch.randint(vocabulary, shape, generator=generator)
        outputs = find_output_shape(model)
        self.labels = torch.randint(outputs[-1], (microbatch, *outputs[:-1]), generator=generator)
        self.parameters = list(self.network.parameters())
        self.take_gradient()

    def take_gradient(self) -> None:
        losses = compute_losses("cross-entropy", self.network(self.inputs), self.labels)
        self.gradient = torch.autograd.grad(losses.mean(), self.parameters)

    def make_update(self, optimizer: str) -> Callable[[], None]:
        plan = LoopPlan(optimizer=optimizer, learning_rate=1e-6)
        state = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))
        group = Parts([p.detach() for p in self.parameters], list(self.gradient), *state)

        @torch.no_grad()
        def update() -> None:
            take_step(plan, group, 0.1, 0.001)

        return update

    def make_library_update(self, optimizer: OwnOptimizer) -> Callable[[], None]:
        parameters = [p.detach().clone().requires_grad_() for p in self.parameters]
        for parameter, gradient in zip(parameters, self.gradient, strict=True):
            parameter.grad = gradient.clone()
        library = optimizer.make(parameters, 10**6)
        return lambda: library.step(1.0)


def _time(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    function()
    calls, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < LEAST_SECONDS or calls < 2:
        function()
        calls += 1
    return spent / calls
