"""Parts: what the runs of an evaluation are divided into for workers, how long each took, and how busy many would be.

All parts share one pool, the dearest first, so that workers end at nearly the same time; what has to wait for others
joins it when it can.
How long each takes is kept beside the results; from that ``simulate`` says how well so many workers would be used.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

from pydantic import Field

from loopwright.agents.judging.records import Header, RecordKind, RecordsFile, read_records
from loopwright.agents.judging.results import ResultsHeader, RunRecord
from loopwright.agents.judging.workers import work_apart
from loopwright.envs.engine.cost import measure_cost
from loopwright.envs.loop.untrusted import Count, Name, Positive, demand, strict
from loopwright.inner_tasks.models import ModelSpec
from loopwright.inner_tasks.task import Task

PARTS_EACH = 24  # that a worker is to have, where there are runs enough
PART_KINDS = ("runs", "searches", "replays")  # of parts
PARTS = "parts.jsonl"
LANE_FLOPS, LEAST_LANES = 7e6, 8  # of a pass in all lanes: with more than that more lanes bring nothing, measured
RUN_FLOPS = 3e4  # of a pass: what a run takes beside its arithmetic, measured in that
Numbered = tuple[int, RunRecord]


class Part(Protocol):
    """Runs that one worker does, on tasks of one shape.

    Attributes:
        kind: one of ``PART_KINDS``.
        model: what is trained.
        runs: how many there are.
        least: below so many runs it is not cut: they would be done in other batches, and could come out otherwise.
        full: what that is where there are runs enough.
        flops: what it costs, nearly: see ``estimate_flops``.
    """

    @property
    def kind(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def runs(self) -> int: ...

    @property
    def least(self) -> int: ...

    @property
    def full(self) -> int: ...

    @property
    def flops(self) -> float: ...

    def cut(self, pieces: int) -> Sequence["Part"]:
        """The same runs in so many parts."""
        ...

    def work(self) -> tuple[list[Numbered], float, float]:
        """Records with their numbers; seconds until the first decision was taken, and in all."""
        ...


@strict
@dataclass(frozen=True)
class PartTime:
    """How long one part took: ``setup`` seconds until the first decision, where loops are compiled, and in all."""

    number: Count
    kind: Name
    model: Name
    runs: Count
    least: Count
    full: Count
    flops: Positive
    setup: Annotated[float, Field(ge=0)]
    seconds: Positive

    @property
    def key(self) -> int:
        return self.number

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def _check(header: Header, time: PartTime) -> None:
    demand(time.runs > 0, "a part has runs")
    demand(0 < time.least <= time.full, f"least must lie in 1 to {time.full}, got {time.least}")
    demand(time.setup <= time.seconds, f"setup took {time.setup} of {time.seconds} seconds")
    demand(time.kind in PART_KINDS, f"kind {time.kind!r}")


PARTS_KIND = RecordKind[PartTime](
    "times of parts", "loopwright-parts-1", ResultsHeader, PartTime, _check, "evaluate again"
)


class PartsFile(RecordsFile[PartTime]):
    """Times of parts on disk: see ``RecordsFile``, and for the arguments ``ResultsFile``."""

    def __init__(self, path: Path, header: Header, methods: dict[str, list[str]]) -> None:
        super().__init__(path, PARTS_KIND, {**header, "methods": methods})

    def add(self, part: Part, setup: float, seconds: float) -> None:
        """Keep how long a part took, unless nothing was left of it to be done."""
        if not seconds:
            return
        own = part.kind, part.model, part.runs, part.least, part.full, part.flops
        self.append(PartTime(len(self.records), *own, setup, seconds))


def read_parts(path: Path) -> list[PartTime]:
    """Raises ``LoopwrightError`` for a file that does not hold times of parts."""
    return read_records(path, PARTS_KIND)[1]


OnPart = Callable[[Part, float, float], None]


def estimate_flops(tasks: Sequence[Task]) -> float:
    """What a run on each of these tasks, of one shape, costs, nearly: the FLOPs of a pass for every geq of its C*.

    Compiled, parts take time in proportion within a factor of two.
    """
    length = sum(1.0 if task.calibration is None else task.calibration.cost for task in tasks)
    return length * (measure_cost(tasks[0].model).flops + RUN_FLOPS)


def find_lanes(model: ModelSpec, lanes: int, per_lane: int = 1) -> int:
    """Of so many ``lanes`` as many as pay: on large models eight are faster than 64. Where each lane is to have several
    jobs one after another (``per_lane``), as many times fewer, so that the last end sooner."""
    worth = int(2 ** round(math.log2(LANE_FLOPS / measure_cost(model).flops)))
    return min(lanes, max(LEAST_LANES, worth) // per_lane)


def work_on(
    parts: Sequence[Part],
    workers: int,
    on_part: OnPart | None,
    *,
    first: Sequence[Part] = (),
    find_more: Callable[[], Sequence[Part]] = tuple,
) -> Iterator[tuple[Part, list[Numbered]]]:
    """What comes of the parts, cut for so many workers, each when it has ended; ``on_part`` hears how long it took.

    Those that others wait for come ``first``. ``find_more`` is asked, before each part is given out, for such as need
    wait no longer; what it still has not given when all others are out is not done.
    """
    most = _find_most([*first, *parts], workers)
    given: list[Part] = []

    def give() -> Iterator[tuple[int, Part]]:
        numbers = count()
        waiting = [(rank, -piece.flops, next(numbers), piece)
                   for rank, own in enumerate((first, parts)) for piece in _cut(own, most)]  # fmt: skip
        heapq.heapify(waiting)
        while True:
            for piece in _cut(find_more(), most):
                heapq.heappush(waiting, (1, -piece.flops, next(numbers), piece))
            if not waiting:
                return
            given.append(heapq.heappop(waiting)[-1])
            yield len(given) - 1, given[-1]

    for number, (records, setup, seconds) in work_apart(_work, give(), workers):
        if on_part is not None:
            on_part(given[number], setup, seconds)
        yield given[number], records


def _work(number: int, part: Part) -> tuple[int, tuple[list[Numbered], float, float]]:
    """What a worker does."""
    return number, part.work()


def cut_parts(parts: Sequence[Part], workers: int) -> list[Part]:
    """The same runs in parts that are small enough for so many workers to end at nearly the same time."""
    return _cut(parts, _find_most(parts, workers))


def _find_most(parts: Sequence[Part | PartTime], workers: int) -> float:
    """What a part may cost at most, that can be cut."""
    return sum(part.flops for part in parts) / (PARTS_EACH * workers)


def _cut(parts: Sequence[Part], most: float) -> list[Part]:
    return [piece for part in parts for piece in part.cut(_count_pieces(part, most))]


def slice_evenly(count: int, pieces: int) -> list[slice]:
    """So many things in order, in pieces that differ by one at most."""
    ends = [round(at * count / pieces) for at in range(pieces + 1)]
    return [slice(a, b) for a, b in pairwise(ends)]


def _count_pieces(part: Part | PartTime, most: float) -> int:
    return max(1, min(part.runs // part.least, math.ceil(part.flops / most)))


class Schedule(NamedTuple):
    """What it would take: parts, seconds of work, of that until first decisions (where loops are compiled), of the
    longest part, and until all have ended."""

    parts: int
    work: float
    setup: float
    longest: float
    seconds: float


def simulate(times: Sequence[PartTime], workers: int, scale: int = 1) -> Schedule:
    """An evaluation whose parts took so long, on so many workers of the same speed.

    Parts are put together by kind, model and what they may be cut to, and cut as ``work_on`` would cut them. Pieces are
    given to whoever is free, the dearest first, as if nothing that waits for others came too late for that; each takes
    its share of the work, and of a worker's pieces of one part the first the setup, since loops stay compiled. With a
    ``scale``, there are so many times the runs.
    """
    whole = [_scale(own, scale) for own in _put_together(times)]
    most = _find_most(whole, workers)
    pieces = [(time, cuts) for time in whole for cuts in [_count_pieces(time, most)] for _ in range(cuts)]
    pieces.sort(key=lambda piece: -piece[0].flops / piece[1])
    free = [(0.0, worker) for worker in range(workers)]
    compiled: list[set[PartTime]] = [set() for _ in free]
    lengths, setup = [], 0.0
    for time, cuts in pieces:
        begun, worker = free[0]
        own = 0.0 if time in compiled[worker] else time.setup
        compiled[worker].add(time)
        lengths.append(own + (time.seconds - time.setup) / cuts)
        setup += own
        heapq.heapreplace(free, (begun + lengths[-1], worker))
    return Schedule(len(pieces), sum(lengths), setup, max(lengths, default=0.0), max(end for end, _ in free))


def _put_together(times: Sequence[PartTime]) -> list[PartTime]:
    """One for all that could have been one part: the longest setup, and the rest of all."""
    groups: dict[tuple[str, str, int, float], list[PartTime]] = {}
    for time in times:
        groups.setdefault((time.kind, time.model, time.least, time.flops / time.runs), []).append(time)
    found = []
    for own in groups.values():
        setup = max(time.setup for time in own)
        rest = sum(time.seconds - time.setup for time in own)
        runs, flops = sum(time.runs for time in own), sum(time.flops for time in own)
        found.append(replace(own[0], runs=runs, flops=flops, setup=setup, seconds=setup + rest))
    return found


def _scale(time: PartTime, scale: int) -> PartTime:
    """As if there were so many times the runs."""
    seconds = time.setup + scale * (time.seconds - time.setup)
    least = min(time.full, scale * time.least)
    return replace(time, runs=scale * time.runs, least=least, flops=scale * time.flops, seconds=seconds)
