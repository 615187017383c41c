"""What an evaluation is divided into for workers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest

from loopwright.agents.controllers.tuned import load_competitors
from loopwright.agents.judging.parts import (
    PARTS,
    Numbered,
    Part,
    PartsFile,
    PartTime,
    cut_parts,
    find_lanes,
    read_parts,
    simulate,
    work_on,
)
from loopwright.agents.judging.results import RunRecord
from loopwright.agents.judging.runner import Job, make_parts
from loopwright.agents.judging.search import SAMPLERS, make_searches
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.inner_tasks import get_task
from loopwright.inner_tasks.models import MLP, RecurrentNet, Transformer
from loopwright.scripts.main import main

TIME = PartTime(0, "runs", "MLP", 640, 64, 64, 640.0, 2.0, 62.0)
HEADER = {"suites": {"s": ["a:0"]}, "seeds": [1]}


@dataclass(frozen=True)
class Numbers:
    """A part that does nothing but count."""

    runs: int
    first: int = 0
    least: int = 4
    full: int = 4
    kind: str = "runs"
    model: str = "MLP"

    @property
    def flops(self) -> float:
        return float(self.runs)

    def cut(self, pieces: int) -> Sequence["Numbers"]:
        ends = [self.first + round(at * self.runs / pieces) for at in range(pieces + 1)]
        return [replace(self, runs=b - a, first=a) for a, b in pairwise(ends)]

    def work(self) -> tuple[list[Numbered], float, float]:
        records = [RunRecord("agent", "a:0", n, "hit", 1.0, 2.0, 0.1, 0.9) for n in self.numbers]
        return [(record.seed, record) for record in records], 0.5, 1.5

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.runs)


def test_workers_give_every_run_once_and_say_how_long_its_part_took() -> None:
    taken: list[tuple[Part, float, float]] = []
    parts = [Numbers(40), Numbers(6, 40, kind="searches"), Numbers(3, 46)]
    found = list(work_on(parts, 2, lambda *own: taken.append(own)))
    assert sorted(number for _, records in found for number, _ in records) == list(range(49))
    for part, records in found:
        assert [number for number, _ in records] == list(part.numbers)  # type: ignore[attr-defined]
    assert {part.kind for part, _ in found} == {"runs", "searches"}
    assert len(taken) == len(found) == len(cut_parts(parts, 2)) > len(parts)
    assert {own[1:] for own in taken} == {(0.5, 1.5)}


def test_searches_are_cut_at_seeds_and_only_while_batches_stay_as_wide() -> None:
    tasks = [get_task("breast-cancer:1"), get_task("breast-cancer:2")]
    studies = len(SAMPLERS) * len(tasks)
    for lanes, seeds, expected in ((64, 20, 1), (16, 20, 2), (4, 7, 3), (4, 1, 1)):
        (whole,) = make_searches(tasks, range(seeds), EpisodeSettings(), lanes, ())
        parts = cut_parts([whole], 64)
        assert [seed for part in parts for seed in part.seeds] == list(range(seeds))  # type: ignore[attr-defined]
        assert len(parts) == expected
        assert all(part.runs == studies * len(part.seeds) for part in parts)  # type: ignore[attr-defined]
        assert all(part.runs >= 2 * lanes for part in parts) or expected == 1


def test_large_models_get_no_more_lanes_than_pay() -> None:
    transformer = Transformer(
        steps=24, inputs=32, width=32, heads=2, layers=1, outputs=32, every_step=True, tokens=True
    )
    recurrent = RecurrentNet(steps=16, inputs=16, width=32, layers=1, outputs=16, every_step=True, tokens=True)
    small = MLP(64, (32, 32), 10)
    assert [find_lanes(model, 64) for model in (small, recurrent, transformer)] == [64, 16, 8]
    assert [find_lanes(model, 64, per_lane=2) for model in (small, recurrent, transformer)] == [64, 8, 4]
    assert find_lanes(transformer, 3) == 3


def test_runs_of_a_large_model_are_cut_finer() -> None:
    """To the lanes that pay, each part as wide as if it had not been cut."""
    for name, lanes in (("breast-cancer:1", 64), ("grammar:1", 16)):
        jobs = [Job(load_competitors(["constant"])[0], get_task(name), seed) for seed in range(128)]
        (whole,) = make_parts(jobs, EpisodeSettings(), 64, ())
        parts = cut_parts([whole], 64)
        assert len(parts) == 128 // lanes
        assert {(part.least, part.full) for part in parts} == {(lanes, lanes)}


def test_the_schedule_of_many_workers() -> None:
    alone = simulate([TIME], 1)
    assert alone == (10, 62.0, 2.0, 8.0, 62.0)  # what is compiled stays so
    many = simulate([TIME], 64)  # ten fill their lanes
    assert many == (10, 60.0 + 10 * 2.0, 10 * 2.0, 8.0, 8.0)
    half = replace(TIME, runs=320, flops=320.0, seconds=32.0)
    assert simulate([half, replace(half, number=1, setup=1.0, seconds=31.0)], 64) == many
    assert simulate([replace(TIME, runs=32, least=32, flops=32.0, seconds=5.0)], 64, scale=20) == many
    dear = replace(TIME, kind="searches", runs=80, least=80, full=128, flops=640.0)
    shared = simulate([TIME, dear, replace(TIME, kind="replays", least=640, full=640)], 4)
    assert (shared.parts, shared.longest) == (12, 62.0)
    assert shared.seconds == 62.0  # of the search and the replays, beside which the runs are done


def test_what_waits_for_others_joins_when_it_can() -> None:
    """The first come first, dear as the others are; and of what becomes possible then, the dearest next."""
    begun: list[int] = []
    more = [[], [Numbers(4, 1000, least=4), Numbers(40, 2000, least=40)]]

    def find_more() -> list[Numbers]:
        return [] if len(begun) < 1 or not more else more.pop()

    found = work_on([Numbers(20, least=20)], 1, None, first=[Numbers(4, 500)], find_more=find_more)
    for part, _ in found:
        begun.append(part.first)  # type: ignore[attr-defined]
    assert begun == [500, 2000, 0, 1000]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": 0}, "a part has runs"), ({"least": 0}, "least must lie in 1 to 64, got 0"),
        ({"least": 65}, "least must lie in 1 to 64, got 65"), ({"setup": 63.0}, "setup took 63.0 of 62.0 seconds"),
        ({"kind": "walks"}, "kind 'walks'"), ({"seconds": 0.0}, "seconds"),
    ],
)  # fmt: skip
def test_times_that_cannot_be_are_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    file = PartsFile(tmp_path / PARTS, HEADER, {"agent": ["x"]})
    file._lines.append(TIME.as_json() | change)
    with pytest.raises(LoopwrightError, match=message):
        read_parts(tmp_path / PARTS)


def test_a_command_says_how_busy_workers_would_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = PartsFile(tmp_path / PARTS, HEADER, {"agent": ["x"]})
    assert main(["scaling", str(tmp_path)]) == 2
    assert "holds no part" in capsys.readouterr().err
    file.add(Numbers(640, least=64, full=64), 2.0, 62.0)
    file.add(Numbers(5), 0.0, 0.0)  # nothing was left of it
    assert [time.runs for time in read_parts(tmp_path / PARTS)] == [640]
    assert main(["scaling", str(tmp_path), "--workers", "10"]) == 0
    assert "10 workers are busy for 100% of 8 s; one alone takes 62 s, 7.8 times as long" in capsys.readouterr().out
    assert main(["scaling", str(tmp_path), "--workers", "20", "--json"]) == 0
    assert '"efficiency": 0.5' in capsys.readouterr().out
    assert main(["scaling", str(tmp_path), "--workers", "0"]) == 2
    assert main(["scaling", str(tmp_path / "nowhere")]) == 2
    assert "no times of parts at" in capsys.readouterr().err
