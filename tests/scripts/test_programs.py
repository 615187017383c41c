"""Real programs: that they know nothing of Loopwright, and that a contest ends, goes on and adds up."""

import ast
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from loopwright.agents.controllers.bundle import load_policy
from loopwright.agents.judging.statistics import SECONDS
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.sealed import seal_all
from loopwright.scripts.programs import TIMED_ROUNDS, Config, Race, list_settings, main
from loopwright.scripts.real_programs import program as listed
from loopwright.scripts.real_programs.program import PROGRAMS, draw_batches, get_program
from loopwright.scripts.real_programs.rivals import RIVALS, STEERED_BY, TUNED, CosineSetting
from loopwright.scripts.real_programs.standing import SAMPLES, cut_at
from loopwright.scripts.real_programs.trial import TRIALS_KIND, TrainingTrial, TrialsFile, run_trial

ROOT = Path(__file__).parents[2]
SETTING = CosineSetting(3e-3, 0.01, 0.1)
SMALL = "residual MLP, segments"


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_a_program_is_ordinary_pytorch(name: str) -> None:
    program = get_program(name)
    module = ROOT / "scripts/real_programs" / f"{program.module}.py"
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not any("loopwright" in name for name in names)
    train, watched, judged = program.load_data()
    assert len(watched[0]) == len(judged[0]) == program.judged
    assert all(len(inputs) == len(labels) > 0 for inputs, labels in (train, watched, judged))
    assert torch.equal(judged[0], program.load_data()[2][0])
    model, again = program.build_model(3), program.build_model(3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert sum(p.numel() for p in model.parameters()) > 100_000
    loss = program.compute_loss(model, next(draw_batches(train, program.batch_size, 0)))
    loss.backward()  # type: ignore[no-untyped-call]
    assert 0 < float(loss.detach()) < 5
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def shorten(monkeypatch: pytest.MonkeyPatch, iterations: int = 40) -> None:
    monkeypatch.setitem(listed.PROGRAMS, SMALL, replace(PROGRAMS[SMALL], iterations=iterations))


@pytest.mark.filterwarnings("ignore:.*left as they are")
@pytest.mark.parametrize("rival", list(RIVALS))
def test_every_rival_trains(rival: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    modest = CosineSetting(3e-4)  # which leaves room for ten times as much
    trial = run_trial(
        SMALL, rival, 0, "contest", modest, None, load_policy(STEERED_BY[rival]) if rival in STEERED_BY else None
    )
    assert not trial.hit
    assert trial.samples == 40 * 64
    assert trial.seconds > 0
    assert math.isfinite(trial.final_loss())
    assert trial.final_loss() < trial.curve[0][2]


def test_a_trial_ends_where_it_reaches_the_target_and_is_cut_there(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    whole = run_trial(SMALL, TUNED, 0, "target", SETTING, None, None)
    target = whole.curve[20][2]
    ended = run_trial(SMALL, TUNED, 0, "contest", SETTING, target, None)
    cut = cut_at(whole, target)
    assert (ended.hit, ended.samples) == (cut.hit, cut.samples)
    assert [point[::2] for point in ended.curve] == [point[::2] for point in cut.curve]  # all but the seconds
    assert cut.samples <= 20 * 64
    assert 0 < cut.seconds < whole.seconds
    assert cut.as_record(SECONDS).cost == cut.seconds
    assert cut.as_record(SAMPLES).cost == cut.samples
    missed = cut_at(whole, 0.0)
    assert (missed.hit, missed.samples) == (False, whole.samples)


def invite(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let no others take part."""
    for module in ("programs", "real_programs.standing", "real_programs.trial"):
        monkeypatch.setattr(f"loopwright.scripts.{module}.RIVALS", {name: RIVALS[name] for name in names})


@pytest.mark.filterwarnings("ignore:.*left as they are")
def test_seconds_are_those_of_whole_rounds_by_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, 32)
    both = (TUNED, "AdamW, steered")
    invite(monkeypatch, *both)
    folder = tmp_path / "contest"
    config = Config(programs=(SMALL,), seeds=1, tuning=1, workers=1, folder=folder, policy="lr-momentum")
    assert main(config) == 0
    contest = Race(config, [SMALL])
    timed = contest.find("timing", SMALL)
    assert [(t.rival, t.seed) for t in timed] == [(rival, n) for n in range(TIMED_ROUNDS) for rival in both]
    assert all(t.curve[-1][0] == 32 and t.seconds > 0 for t in timed)
    pace = contest.find_pace(SMALL)
    assert pace[TUNED] == sorted(t.seconds for t in timed if t.rival == TUNED)[TIMED_ROUNDS // 2] / 32
    for trial in contest.collect():
        assert trial.seconds == pytest.approx(pace[trial.rival] * trial.samples / 64)
        assert trial.curve[-1][1] == trial.seconds
    contest.time()
    assert len(contest.find("timing", SMALL)) == 2 * TIMED_ROUNDS  # nothing is missing
    contest.file.rewrite([t for t in contest.file.records if t.key != timed[-1].key])  # killed within a round
    contest = Race(config, [SMALL])
    contest.time()
    rounds = [t.seed for t in contest.find("timing", SMALL)]
    assert rounds == [*sorted([*range(TIMED_ROUNDS)] * 2)[:-1], TIMED_ROUNDS, TIMED_ROUNDS]
    other = Race(replace(config, policy="adamw"), [SMALL])
    assert other.find_rounds(SMALL) == []


@pytest.mark.filterwarnings("ignore:.*left as they are")
def test_a_contest_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shorten(monkeypatch, 32)
    steered = "AdamW, steered"
    invite(monkeypatch, TUNED, "AdamW, default", steered)
    config = Config(programs=(SMALL,), seeds=2, tuning=2, workers=1, folder=tmp_path)
    assert main(config) == 0
    lines = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 2 + 2 + 2 * 2 + TIMED_ROUNDS * 3
    page = (tmp_path / "README.md").read_text()
    assert f"| {steered} |" in page
    assert (tmp_path / "programs.png").stat().st_size > 10_000
    (tmp_path / "trials.jsonl").write_text("\n".join(lines[:7]) + "\n" + lines[7][:50])  # killed while writing
    assert main(config) == 0
    again = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert len(again) == len(lines)
    timed = ("seconds", "curve", "previous", "hash")
    without_time = [{k: v for k, v in json.loads(line).items() if k not in timed} for line in again]
    assert without_time[7:9] == [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines[7:9]]
    assert steered in capsys.readouterr().out
    with pytest.raises(LoopwrightError, match=r"trials of another evaluation \(tuning differ\)"):
        main(replace(config, tuning=3))
    (tmp_path / "trials.jsonl").write_text(lines[0] + '\n{"seed": 1}\n')
    with pytest.raises(LoopwrightError, match="line 2 was changed"):
        main(config)


def test_settings_begin_alike_and_stay_in_range() -> None:
    few, many = list_settings(4), list_settings(20)
    assert many[:4] == few
    assert all(1e-4 <= s.lr <= 10**-1.5 and 1e-3 <= s.weight_decay <= 0.33 for s in many)
    assert len({s.warm_up for s in many}) == 2


def test_a_contest_of_an_unknown_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoopwrightError, match="unknown program 'chess'"):
        main(Config(folder=tmp_path, programs=("chess",)))


def test_trials_without_a_target_never_hit() -> None:
    trial = TrainingTrial(SMALL, TUNED, 0, "tuning", "", {}, None, False, 1, 1.0, ((0, 0.0, 2.0), (1, 1.0, 1.0)))
    assert not trial.hit


HEADER = {"versions": {}, "tuning": 1, "programs": {SMALL: {}}}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"program": "another"}, "the header names no program 'another'"),
        ({"purpose": "fun"}, "purpose: must be one of tuning, target, contest, timing, got 'fun'"),
        ({"policy": "me"}, r"policy: String should match pattern"),
        ({"setting": {"lr": 0.1}}, "setting: must be lr, weight_decay, warm_up"),
        ({"samples": -1}, "samples: Input should be greater than or equal to 0, got -1"),
        ({"seconds": "nan"}, "seconds: Input should be a valid number, got 'nan'"),
        ({"curve": []}, "curve: Tuple should have at least 1 item"),
        ({"curve": [[0, 0.0, 2.0, 1]]}, "curve.0: Tuple should have at most 3 items"),
        ({"curve": [[0, 0.0, 2.0]]}, "a run without a target that ended at once"),
        ({"hit": 1}, "hit: Input should be a valid boolean, got 1"),
        ({"more": 1}, "more: Unexpected keyword argument, got 1"),
    ],
)
def test_what_cannot_be_a_trial_is_refused_whatever_its_seal(
    change: dict[str, object], problem: str, tmp_path: Path
) -> None:
    path, curve = tmp_path / "trials.jsonl", ((0, 0.0, 2.0), (1, 1.0, math.inf))
    trial = TrainingTrial(SMALL, TUNED, 0, "tuning", "", asdict(SETTING), None, False, 1, 1.0, curve)
    TrialsFile(path, HEADER).append(trial)
    assert TrialsFile(path, HEADER).records == [trial]
    path.write_bytes(seal_all([{"format": TRIALS_KIND.format, **HEADER}, trial.as_json() | change])[0])
    with pytest.raises(LoopwrightError, match=f"trials.jsonl, line 2: {problem}"):
        TrialsFile(path, HEADER)
