"""The tuned competitors: the winners that ``loopwright tune`` found, kept in ``tuned.json`` with their provenance."""

from collections.abc import Callable, Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator
from typing_extensions import TypedDict

from loopwright.agents.controllers.optimizers import Optimized
from loopwright.agents.controllers.schedules import ReduceOnPlateau, Scheduled
from loopwright.agents.controllers.simple import Constant
from loopwright.envs.loop.controller import Controller
from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.envs.loop.plan import LoopPlan
from loopwright.envs.loop.untrusted import Count, Name, PlanValues, Positive, Reader, one_of, strict

TUNED_FILE = Path(__file__).with_name("tuned.json")
DEFAULT_ADAMW = "default AdamW"
TUNED_LISTS = ("gradients", "measured")  # the price lists under which competitors are tuned
CONTROLLER_TYPES: dict[str, Callable[..., Controller]] = {
    kind.__name__: kind for kind in (Constant, Scheduled, ReduceOnPlateau, Optimized)
}


@strict
class _Settings(TypedDict):
    """A controller as ``describe_controller`` writes it."""

    type: Annotated[str, AfterValidator(one_of(*CONTROLLER_TYPES))]
    start: PlanValues
    schedule: NotRequired[Name]
    horizon: NotRequired[Positive]
    kind: NotRequired[Name]
    settings: NotRequired[dict[Name, int | float]]
    factor: NotRequired[Positive]
    patience: NotRequired[Count]
    threshold: NotRequired[Positive]


@strict
class _Winner(TypedDict):
    """One that ``loopwright tune`` found, and how."""

    settings: _Settings
    geometric_budget_share: Positive
    decisions: Count
    configurations: Count
    suite: NotRequired[Name]
    tasks: Count
    seeds: list[Count]
    date: Name


_TUNED = Reader[dict[str, dict[str, dict[str, Any]]]](dict[Name, dict[Name, _Winner]])


def describe_controller(controller: Any) -> dict[str, Any]:
    """A competitor's controller as JSON values."""
    own = {
        field.name: getattr(controller, field.name) for field in fields(controller) if not field.name.startswith("_")
    }
    own.pop("name")
    return {"type": type(controller).__name__, **own, "start": controller.start.as_json()}


def restore_controller(name: str, description: dict[str, Any]) -> Controller:
    """The inverse of ``describe_controller``. Raises ``LoopwrightError`` for entries that its type does not have."""
    own = dict(description)
    kind = own.pop("type")
    try:
        return CONTROLLER_TYPES[kind](LoopPlan.from_json(own.pop("start")), name=name, **own)
    except TypeError as problem:
        raise LoopwrightError(f"{name}: not the settings of a {kind}: {problem}") from None


def read_tuned_lists() -> dict[str, dict[str, dict[str, Any]]]:
    """All that ``loopwright tune`` found, by price list and the competitor's name; empty where it has not run."""
    return _TUNED.read(TUNED_FILE) if TUNED_FILE.exists() else {}


def read_tuned(prices: str = TUNED_LISTS[0]) -> dict[str, dict[str, Any]]:
    """What ``loopwright tune`` found under a price list, by the competitor's name, in the order of ``COMPETITORS``."""
    lists = read_tuned_lists()
    if not lists:
        raise LoopwrightError(f"{TUNED_FILE.name} is missing; run: loopwright tune")
    if prices not in lists:
        raise UnknownNameError("price list that competitors were tuned under", prices, list(lists))
    return lists[prices]


def make_default_adamw() -> Controller:
    """PyTorch's own settings, not tuned."""
    return Constant(replace(LoopPlan(), weight_decay=0.01), name=DEFAULT_ADAMW)


def load_competitors(names: list[str] | None = None, prices: str = TUNED_LISTS[0]) -> list[Controller]:
    """PyTorch's default AdamW and the stored winners under a price list, or those of the ``names`` only."""
    entries = read_tuned(prices)
    for name in names or []:
        if name not in entries:
            raise UnknownNameError("tuned competitor", name, list(entries))
    chosen = [name for name in entries if names is None or name in names]
    return [make_default_adamw(), *(restore_controller(name, entries[name]["settings"]) for name in chosen)]


def find_best_single(names: Collection[str], prices: str = TUNED_LISTS[0]) -> str:
    """Of these methods, the competitor that did best where they were tuned, under that list.

    Where they were tuned on different suites, of those that were on the training suite. ``DEFAULT_ADAMW`` where none of
    them was tuned.
    """
    entries = {name: entry for name, entry in read_tuned(prices).items() if name in names}
    common = {name: entry for name, entry in entries.items() if entry.get("suite", "train") == "train"}
    shares = {name: float(entry["geometric_budget_share"]) for name, entry in (common or entries).items()}
    return min(shares, key=shares.__getitem__, default=DEFAULT_ADAMW)


def get_starting_plan(name: str) -> LoopPlan:
    """The plan to start from: "default" is PyTorch's own AdamW, "tuned" the best constant where updates cost time.

    Others are named as the competitors that are constants, such as "averaged AdamW", and are as that list has them.
    """
    if name == "default":
        return LoopPlan()
    constants = {
        own: entry["settings"]
        for own, entry in read_tuned(TUNED_LISTS[-1]).items()
        if entry["settings"]["type"] == Constant.__name__
    }
    constants["tuned"] = constants.pop("constant")
    if name not in constants:
        raise UnknownNameError("starting plan", name, ["tuned", "default", *sorted(set(constants) - {"tuned"})])
    return restore_controller(name, constants[name]).start
