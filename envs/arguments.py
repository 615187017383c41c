"""Arguments of the environments: as objects, or as the plain mappings that YAML, command lines and specs can hold."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from loopwright.envs.engine.prices import PriceList
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.checks import check_kind
from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.envs.loop.plan import LoopPlan
from loopwright.envs.sampling import Spread
from loopwright.inner_tasks.task import Task

PriceArgument = str | Mapping[str, float] | PriceList
Built = TypeVar("Built", EpisodeSettings, LoopPlan, Spread)


def _build(kind: type[Built], name: str, value: Built | Mapping[str, Any] | None) -> Built:
    """What was given, or made from a mapping of its fields; None is the default."""
    accepted = f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}, a mapping of its fields, or None"
    check_kind(name, value, (kind, Mapping, type(None)), accepted)
    if isinstance(value, kind):
        return value
    values: dict[str, Any] = dict(value or {})  # type: ignore[arg-type]
    if kind is LoopPlan:
        return LoopPlan.from_json(values)  # type: ignore[return-value]
    known = [field.name for field in fields(kind)]
    for given in values:
        if given not in known:
            raise UnknownNameError(f"field of {name}", given, known)
    return kind(**values)


def choose_settings(
    settings: EpisodeSettings | Mapping[str, Any] | None, prices: PriceArgument | None
) -> EpisodeSettings:
    """The settings of an environment, with the prices that it is given besides."""
    chosen = _build(EpisodeSettings, "settings", settings)
    return chosen if prices is None else replace(chosen, prices=prices)


def choose_plan(plan: LoopPlan | Mapping[str, Any] | None) -> LoopPlan:
    return _build(LoopPlan, "plan", plan)


def choose_spread(spread: Spread | Mapping[str, Any] | None) -> Spread:
    return _build(Spread, "spread", spread)


def choose_tasks(tasks: str | Task | Sequence[str | Task] | None) -> list[str | Task] | None:
    """A list of tasks; one alone may be given as it is. None is the whole suite."""
    if tasks is None:
        return None
    if isinstance(tasks, str | Task):
        return [tasks]
    check_kind("tasks", tasks, (list, tuple), "a task, a list of tasks, or None for the whole suite")
    if len(tasks) == 0:
        raise LoopwrightError("tasks is empty; give at least one task, or None for the whole suite")
    return list(tasks)
