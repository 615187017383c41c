"""The task families by name, and the tasks by theirs. Families register themselves where they are defined."""

from collections.abc import Sequence
from functools import lru_cache

from loopwright.envs.loop.errors import LoopwrightError, UnknownNameError
from loopwright.inner_tasks.family import TaskFamily
from loopwright.inner_tasks.task import ShapeKey, Task

LONGEST_SEED = 18  # digits

_FAMILIES: dict[str, TaskFamily] = {}


def register_family(family: TaskFamily) -> None:
    """Make a family known by its name. Raises ``LoopwrightError`` if the name is taken or holds a colon."""
    if ":" in family.name or family.name in _FAMILIES:
        raise LoopwrightError(f"family name {family.name!r} is taken or holds a ':'")
    _FAMILIES[family.name] = family


def list_families() -> dict[str, TaskFamily]:
    """Every registered family by name, in the order of registration."""
    return dict(_FAMILIES)


def find_family(name: str) -> tuple[TaskFamily, int]:
    """The family and the seed of the task called ``family:seed``, for instance ``"digits-mlp:0"``."""
    if not isinstance(name, str):
        raise LoopwrightError(f"a task is named family:seed, in text; got a {type(name).__name__}")
    family, _, seed = name.partition(":")
    if family not in _FAMILIES:
        raise UnknownNameError("task family", family, list(_FAMILIES))
    if not (seed.isascii() and seed.isdigit() and len(seed) <= LONGEST_SEED):
        given = name if len(name) <= 100 else f"{name[:97]}..."
        raise LoopwrightError(
            f"a task is named family:seed, the seed a number of up to {LONGEST_SEED} digits, for instance "
            f"'{family}:0'; got {given!r}"
        )
    return _FAMILIES[family], int(seed)


def get_shape(task: str | Task) -> ShapeKey:
    """The shape of a task, or of the one of that name, without drawing its data."""
    if isinstance(task, Task):
        return task.shape_key
    family, seed = find_family(task)
    return family.draw_shape(seed)


@lru_cache(maxsize=512)  # of a third of a megabyte each
def get_task(name: str) -> Task:
    """The task called ``family:seed``; those drawn lately are kept. Raises ``LoopwrightError`` for another name."""
    family, seed = find_family(name)
    return family.make_task(seed)


def get_tasks(names: Sequence[str]) -> list[Task]:
    return [get_task(name) for name in names]
