"""CompiledObserver: ``Observer`` of a single run, for loops in which Python's own work counts."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

import numpy as np

from loopwright.envs.loop.arithmetic import Number
from loopwright.envs.loop.averages import Floats
from loopwright.envs.loop.compiled import CFunction, Compiled, write_results
from loopwright.envs.loop.context import Context
from loopwright.envs.loop.observation import LIMIT, OBSERVATION_NAMES
from loopwright.envs.loop.observer import Observer, Reading
from loopwright.envs.loop.plan import PLAN_FIELDS
from loopwright.envs.loop.telemetry import TELEMETRY
from loopwright.envs.loop.tracing import Expression, Traced

_get_telemetry, _get_fields = itemgetter(*TELEMETRY), itemgetter(*PLAN_FIELDS)
_READ = len(TELEMETRY) + 6 + len(PLAN_FIELDS)  # numbers of a reading


class CompiledObserver(Observer):
    """Observes one run by a compiled function where there is a C compiler, else as ``Observer`` does: the same numbers.

    What it remembers lies in the function's memory while nothing else is to read or change it.
    """

    no_memory = (*Observer.no_memory, "_function", "_inside")

    def __init__(self) -> None:
        super().__init__(arithmetic=Compiled())
        self._function: CFunction | None = None
        self._inside = False  # whether what is remembered lies in the function's memory

    def observe(self, reading: Reading) -> Floats:
        if reading.telemetry is None:  # the first time: nothing to hurry about
            self._take_out()
            return super().observe(reading)
        if self._function is None:
            self._function = CFunction(*_trace())
        if not self._function.found:
            return super().observe(reading)
        memory = self._function.memory
        if not self._inside:
            memory[_READ : -len(OBSERVATION_NAMES)] = [place[name] for place, name in _list_places(self)]
            self._inside = True
        memory[:_READ] = [
            *_get_telemetry(reading.telemetry), reading.control_loss, reading.budget_left, reading.trained,
            reading.restored, reading.guard_left, reading.samples_read, *_get_fields(reading.plan),
        ]  # fmt: skip
        self._function.run()
        return np.array([memory[-len(OBSERVATION_NAMES) :]], np.float32)

    def begin(self, lanes: Sequence[int], control_loss: Floats, contexts: Sequence[Context]) -> None:
        self._take_out()
        super().begin(lanes, control_loss, contexts)

    def tell_control(self, loss: float) -> None:
        self._take_out()
        super().tell_control(loss)

    def tell_prices(self, passes: Mapping[str, float]) -> None:
        self._take_out()
        super().tell_prices(passes)

    def state_dict(self) -> dict[str, Any]:
        self._take_out()
        return super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._take_out()
        super().load_state_dict(state)

    @property
    def log_loss(self) -> Number:
        self._take_out()
        return super().log_loss

    def _take_out(self) -> None:
        """Have what is remembered where ``Observer`` has it."""
        if self._function is not None and self._inside:
            held = self._function.memory[_READ : -len(OBSERVATION_NAMES)]
            for (place, name), number in zip(_list_places(self), held, strict=True):
                place[name] = bool(number) if isinstance(place[name], bool) else number
        self._inside = False


def _list_places(thing: Any) -> Iterator[tuple[dict[Any, Any], Any]]:
    """Where an observer keeps the numbers that it remembers: in which mapping, under which name."""
    place = thing if isinstance(thing, dict) else vars(thing)
    for name, held in place.items():
        if name in CompiledObserver.no_memory:
            continue
        if isinstance(held, bool | float | Expression):
            yield place, name
        else:
            yield from _list_places(held)


@lru_cache(maxsize=1)
def _trace() -> tuple[list[str], int]:
    """Statements that observe, and how many numbers they are about: a reading, what is remembered, an observation."""
    xp = Traced()
    observer = Observer(arithmetic=xp)
    places = list(_list_places(observer))
    for at, (place, name) in enumerate(places, _READ):
        place[name] = xp.read(f"m[{at}]", truth=isinstance(place[name], bool))
    numbers = [xp.read(f"m[{at}]") for at in range(_READ)]
    telemetry, rest = numbers[: len(TELEMETRY)], numbers[len(TELEMETRY) :]
    control_loss, budget_left, trained, restored, guard_left, samples_read, *plan = rest
    reading = Reading(
        dict(zip(TELEMETRY, telemetry, strict=True)), control_loss, dict(zip(PLAN_FIELDS, plan, strict=True)),
        budget_left, trained != 0, restored != 0, guard_left, samples_read,
    )  # fmt: skip
    features = observer.compute_features(reading)
    seen = [xp.where(xp.isnan(own), LIMIT, xp.minimum(xp.maximum(own, -LIMIT), LIMIT)) for own in features]
    kept = [place[name] for place, name in _list_places(observer)]
    return [*xp.statements, *write_results([*kept, *seen], _READ)], _READ + len(kept) + len(seen)
