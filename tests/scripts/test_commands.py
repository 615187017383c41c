"""The commands: what they print, write and refuse."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from loopwright.agents.controllers.bundle import load_policy
from loopwright.agents.judging.results import read_results
from loopwright.agents.training.config import TrainingConfig
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.ledger import read_ledger
from loopwright.envs.training_loop import TrainingLoopEnv
from loopwright.scripts import prices as scripts_prices
from loopwright.scripts import train
from loopwright.scripts.demo import clear
from loopwright.scripts.main import COMMANDS, main
from loopwright.scripts.run import run

ROOT = Path(__file__).parents[2]


class Run(NamedTuple):
    """What came of a command."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Run]


@pytest.fixture
def loopwright(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process, in a folder ``cwd``: imports take longer than most commands."""

    def call(*arguments: str, cwd: Path) -> Run:
        monkeypatch.chdir(cwd)
        capsys.readouterr()
        try:
            status = main(list(arguments))
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        return Run(status, *capsys.readouterr())

    return call


def test_the_command_is_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "loopwright.scripts.main"]
    for arguments, status, message in ((["fly"], 2, "unknown command 'fly'"), (["--help"], 0, "evaluate")):
        run = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert run.returncode == status
        assert message in run.stdout + run.stderr


@pytest.mark.slow
def test_train_then_evaluate(loopwright: Command, tmp_path: Path) -> None:
    arguments = ("--folder", "agent", "--steps", "256", "--lanes", "16", "--suite", "demo-new", "--no-compile")
    trained = loopwright("train", *arguments, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "decision" in trained.stderr  # the progress bar
    options = ("--folder", "out", "--suite", "demo-new", "--seeds", "1", "--competitors", "constant", "--ledgers")
    evaluated = loopwright("evaluate", "agent/policy.safetensors", *options, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "breast-cancer:" in evaluated.stdout
    assert "timings: 100%" in evaluated.stderr
    assert (tmp_path / "out/evaluation.png").stat().st_size > 10_000
    assert "</svg>" in (tmp_path / "out/report.html").read_text()
    _, records = read_results(tmp_path / "out/runs.jsonl")
    tasks = {record.task for record in records}
    assert len(records) == len(tasks) * 3
    assert {record.method for record in records} == {"agent", "default AdamW", "constant"}
    ledgers = sorted((tmp_path / "out/ledgers/agent").glob("*.jsonl"))
    assert len(ledgers) == len(tasks)
    fingerprint = load_policy(tmp_path / "agent/policy.safetensors").fingerprint
    assert read_ledger(ledgers[0]).header["author"]["fingerprint"] == fingerprint
    check_replays(loopwright, ledgers[0], tmp_path)
    compared = loopwright("compare", "out", "out:constant", "--json", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert {ratio["unit"] for ratio in json.loads(compared.stdout)["ratios"]} == {"geq", "seconds"}
    assert "out:constant" in loopwright("compare", "out", "out:constant", cwd=tmp_path).stdout
    check_resuming(tmp_path, options)


def check_resuming(cwd: Path, options: tuple[str, ...]) -> None:
    """Killed without warning, an evaluation goes on where it was, and comes to the same results."""
    _, whole = read_results(cwd / "out/runs.jsonl")
    command = [sys.executable, "-W", "ignore", "-m", "loopwright.scripts.main", "evaluate", "agent/policy.safetensors"]
    arguments = [*command, *("again" if option == "out" else option for option in options if option != "--ledgers")]
    kept = cwd / "again/runs.jsonl"
    with subprocess.Popen(arguments, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        while killed.poll() is None and not (kept.exists() and kept.read_text().count("\n") > 5):
            time.sleep(0.05)
        killed.kill()
    before = kept.read_text().count("\n")
    assert before < 1 + len(whole)
    resumed = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert resumed.returncode == 0, resumed.stderr
    _, records = read_results(kept)
    assert len({record.key for record in records}) == len(records) == len(whole)
    expected = {record.key: record for record in whole}
    for record in records:
        assert (record.outcome, record.cost) == (expected[record.key].outcome, expected[record.key].cost)


def test_an_ensemble_is_a_bundle_like_any_other(loopwright: Command, tmp_path: Path) -> None:
    made = loopwright("ensemble", "core", "core", "--into", "twice.safetensors", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    twice, once = load_policy(tmp_path / "twice.safetensors"), load_policy("core")
    assert [member["sha256"] for member in twice.training["members"]] == [once.fingerprint] * 2
    seen = np.random.default_rng(0).normal(size=(8, once.features)).astype(np.float32)
    np.testing.assert_allclose(twice.act(seen), once.act(seen))


def test_a_switch_is_a_bundle_like_any_other(loopwright: Command, tmp_path: Path) -> None:
    made = loopwright("switch", "core", "adamw", "--feature", "passes", "--at", "1.5", "--raised", "clip", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    switch = load_policy(tmp_path / "runs/switch.safetensors")
    assert switch.training["switch"] == {"feature": "passes", "threshold": 1.5, "raised": ["clip"]}
    assert switch.start == load_policy("core").start


def test_what_a_command_cannot_do_it_says_in_a_line(loopwright: Command, tmp_path: Path) -> None:
    for arguments, message in (
        (("evaluate", "nothing.safetensors"), "no bundle at nothing.safetensors"),
        (("compare", "a", "b"), "no results at a/runs.jsonl"),
        (("train", "--preset", "best"), "unknown preset 'best'"),
        (("tune", "--kinds", "nobody"), "unknown competitor 'nobody'"),
        (("ensemble", "core", "adamw"), "policy 2 has knobs 'lr+"),
        (("switch", "adamw", "core"), "moves clip, batch, optimizer, which the one below it"),
    ):
        failed = loopwright(*arguments, cwd=tmp_path)
        assert failed.returncode == 2
        assert message in failed.stderr
        assert "Traceback" not in failed.stderr


def test_a_demo_removes_nothing_that_no_demo_wrote(loopwright: Command, tmp_path: Path) -> None:
    thesis = tmp_path / "precious" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    (thesis.parent / "policy.safetensors").write_text("of an earlier demo")
    for arguments, message in (
        (("--steps", "0", "--folder", "precious"), "steps must be 1 or more, got 0"),
        (("--seeds", "0", "--folder", "precious"), "seeds must be 1 or more, got 0"),
        (("--folder", "precious"), "precious holds what no demo wrote: thesis.tex"),
        (("--folder", "precious/thesis.tex"), "precious/thesis.tex is a file"),
    ):
        refused = loopwright("demo", *arguments, cwd=tmp_path)
        assert refused.returncode == 2
        assert message in refused.stderr
        assert sorted(path.name for path in thesis.parent.iterdir()) == ["policy.safetensors", "thesis.tex"]
    thesis.unlink()
    (thesis.parent / "measured").mkdir()
    (thesis.parent / "measured/chapter.tex").write_text("more of it")
    with pytest.raises(LoopwrightError, match=r"what no demo wrote: measured/chapter\.tex"):
        clear(thesis.parent)
    (thesis.parent / "measured/chapter.tex").rename(thesis.parent / "measured/report.html")
    clear(thesis.parent)
    assert not list(thesis.parent.iterdir())


@pytest.mark.parametrize(
    ("typed", "settings"),
    [
        ((), {"knobs": "core", "suite": "train", "steps": 500_000}),
        (("--preset", "rules"), {"suite": "varied", "lanes": 512, "options": {"n_steps": 16}, "steps": 1_000_000}),
        (("--preset", "rules", "--knobs", "core"), {"knobs": "core", "steps": 1_000_000}),
        (("--knobs", "core", "--steps", "500000", "--preset=rules"), {"knobs": "core", "steps": 500_000}),
    ],
)
def test_what_is_typed_wins_over_a_preset(
    typed: tuple[str, ...], settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[TrainingConfig] = []
    monkeypatch.setattr(train, "train", lambda config, folder, resume: trained.append(config))
    assert run(train, list(typed)) == 0
    assert {name: getattr(trained[0], name) for name in settings} == settings


def check_replays(loopwright: Command, ledger: Path, cwd: Path) -> None:
    """An audit log executed again, shown, followed elsewhere, and found out when it was altered."""
    again = loopwright("replay", str(ledger), cwd=cwd)
    assert again.returncode == 0, again.stderr
    decisions = len(read_ledger(ledger).entries)
    assert f"{decisions} of {decisions} decisions came out the same" in again.stdout
    shown = loopwright("replay", str(ledger), "--show", cwd=cwd)
    assert shown.returncode == 0, shown.stderr
    assert "changed" in shown.stdout
    assert "budget_left" not in shown.stdout
    followed = loopwright("replay", str(ledger), "--open-loop", "--task", "breast-cancer:2", "--json", cwd=cwd)
    assert followed.returncode == 0, followed.stderr
    assert json.loads(followed.stdout)["task"] == "breast-cancer:2"
    ledger.write_bytes(ledger.read_bytes().replace(b'"verdict":"fine"', b'"verdict":"fine,"', 1))
    altered = loopwright("replay", str(ledger), cwd=cwd)
    assert altered.returncode == 2
    assert "line 2 was changed" in altered.stderr
    assert "Traceback" not in altered.stderr


def test_a_replay_says_whether_all_of_the_run_is_there(loopwright: Command, tmp_path: Path) -> None:
    short = EpisodeSettings(budget_factor=0.05)
    env = TrainingLoopEnv(tasks=["breast-cancer:1"], ledgers=tmp_path, settings=short)
    env.action_space.seed(0)
    env.reset(seed=0)
    (ledger,) = tmp_path.glob("*.jsonl")
    empty = loopwright("replay", ledger.name, cwd=tmp_path)
    assert (empty.returncode, empty.stdout) == (2, "")
    assert "holds no decision: nothing to replay" in empty.stderr
    done, decisions = False, 0
    while not done:
        *_, done, _, _ = env.step(env.action_space.sample())
        decisions += 1
        found = loopwright("replay", ledger.name, cwd=tmp_path)
        assert f"{decisions} of {decisions} decisions came out the same" in found.stdout
        assert ("unfinished" in found.stdout) is (found.returncode == 1) is not done
        found = loopwright("replay", ledger.name, "--json", cwd=tmp_path)
        assert json.loads(found.stdout)["exact"] is json.loads(found.stdout)["finished"] is done
    assert decisions > 1


def test_tasks_lists_every_family(loopwright: Command, tmp_path: Path) -> None:
    listed = loopwright("tasks", "--json", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    families = {row["family"]: row for row in json.loads(listed.stdout)}
    assert families["digits-conv"]["kind"] == "image"
    assert families["breast-cancer"]["splits"] == {"train": 320, "control": 96, "target": 152}
    assert all(row["source"] for row in families.values())
    assert len(families) >= 20
    assert families["mixtures"]["models"][1].startswith("MLP(")
    table = loopwright("tasks", cwd=tmp_path)
    assert all(name in table.stdout for name in families)


def test_tasks_lists_where_data_comes_from(loopwright: Command, tmp_path: Path) -> None:
    listed = loopwright("tasks", "--sources", "--json", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    sources = {row["source"]: row for row in json.loads(listed.stdout)}
    assert sources["mnist"]["extra"] == "image"
    assert sources["digits"]["extra"] is None
    assert all(row["licence"] and row["package"] and row["installed"] for row in sources.values())
    table = loopwright("tasks", "--sources", cwd=tmp_path)
    assert all(name in table.stdout for name in sources)


def test_scores_trains_families_and_writes_their_page(loopwright: Command, tmp_path: Path) -> None:
    arguments = ("--families", "breast-cancer", "diabetes", "--samples", "6000", "--draws", "2", "--docs", "pages")
    written = loopwright("scores", *arguments, cwd=tmp_path)
    assert written.returncode == 0, written.stderr
    scores = {row["family"]: row for row in json.loads((tmp_path / "pages/results/scores.json").read_text())}
    assert scores["breast-cancer"]["metric"] > 0.9
    assert 0.2 < scores["diabetes"]["metric"] < 0.7
    rows = (tmp_path / "pages/tasks.md").read_text().splitlines()
    assert f"{scores['breast-cancer']['metric']:.3f}" in next(row for row in rows if "`breast-cancer`" in row)
    assert sum("`mnist-mlp`" in row for row in rows) == 1  # listed, not trained


def test_missing_prices_are_measured_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((ROOT / "envs/engine/prices.json").read_text())
    gone = content["entries"].pop(0)
    (tmp_path / "prices.json").write_text(json.dumps(content))
    monkeypatch.setattr(scripts_prices, "PRICES_FILE", tmp_path / "prices.json")
    assert main(["prices", "--missing", "--docs", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "prices.json").read_text())
    *others, found = again["entries"]
    assert others == content["entries"]
    assert again["provenance"]["date"] == content["provenance"]["date"]
    assert (found["model"], found["microbatch"]) == (gone["model"], gone["microbatch"])
    assert found["passes"].keys() == gone["passes"].keys()
    assert found["passes"]["muon"] > found["passes"]["adamw"]


def test_the_page_of_prices_is_that_of_the_stored_ones(loopwright: Command, tmp_path: Path) -> None:
    written = loopwright("prices", "--show", "--docs", "pages", cwd=tmp_path)
    assert written.returncode == 0, written.stderr
    text = (tmp_path / "pages/prices.md").read_text()
    assert text == (ROOT / "docs/prices.md").read_text()
    (row,) = (row for row in text.splitlines() if "inputs=784" in row and "| 64 |" in row)
    assert all(0 < float(price) < 30 for price in row.split("|")[4:-1])


@pytest.mark.slow
def test_calibration_stores_what_it_can_find_again(tmp_path: Path) -> None:
    """In a copy of the package, whose targets are its own."""
    shutil.copytree(
        ROOT, tmp_path / "tree", symlinks=True, ignore=shutil.ignore_patterns(".*", "runs", "docs", "tests")
    )
    tree = tmp_path / "tree"
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "PATH": ""}  # no compiler: it would not pay

    def calibrate(*options: str) -> subprocess.CompletedProcess[str]:
        tasks = ("--tasks", "rosenbrock:7", "quadratic:3")
        command = [sys.executable, "-W", "ignore", "-m", "loopwright.scripts.main", "calibrate", *tasks, *options]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)

    stored = tree / "inner_tasks" / "targets.json"
    stored.unlink()
    first = calibrate()
    assert first.returncode == 0, first.stderr
    content = json.loads(stored.read_text())
    assert {*content["targets"], *content["dropped"]} == {"rosenbrock:7", "quadratic:3"}
    (provenance,) = content["provenance"].values()
    assert provenance["seeds"]["search"] != provenance["seeds"]["rerun"]
    assert "2 tasks came out the same" in calibrate("--check").stdout
    content["targets"]["quadratic:3"]["target"] *= 1.005
    stored.write_text(json.dumps(content))
    other = calibrate("--check")
    assert other.returncode == 1
    assert "quadratic:3: stored" in other.stdout
    resumed = calibrate()  # nothing is left to do
    assert json.loads(stored.read_text()) == content
    assert resumed.returncode == 0


def test_bench_measures_costs(loopwright: Command, tmp_path: Path) -> None:
    result = loopwright("bench", "--what", "cost", "--json", "--seconds", "0.1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = {row["plan"]: row for row in json.loads(result.stdout)}
    assert rows["full"]["predicted"] == rows["full"]["measured"] == 1
    assert rows["depth 1 of 5"]["predicted"] < rows["depth 4 of 5"]["predicted"] < 1
    assert all(row["measured"] > 0 for row in rows.values())


@pytest.mark.slow
def test_bench_reports_every_figure(loopwright: Command, tmp_path: Path) -> None:
    result = loopwright("bench", "--json", "--seconds", "0.2", "--lanes", "4", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    for name in ("lanes_eager", "lanes_compiled", "plain_loop", "reference_loop", "matmul_limit"):
        assert figures["steps_per_second"][name] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--algorithm", "REINFORCE"], "unknown algorithm 'REINFORCE'"),
        (["train", "--algorithm", "CrossQ"], "CrossQ cannot be trained here: its actor has batch normalisation"),
        (["evaluate", "core", "--address", "auto"], "address is that of a Ray cluster, and needs --backend ray"),
        (["train", "--knobs", "warp"], "unknown knob or knob set 'warp'"),
        (["train", "--lanes", "0"], "lanes must be 1 or more, got 0"),
        (["train", "--suite", "nope"], "unknown suite 'nope'"),
        (["evaluate", "nothing.safetensors"], "no bundle at nothing.safetensors"),
        (["calibrate", "--suite", "nope"], "unknown suite 'nope'"),
        (["train", "--resume"], "nothing to resume"),
        (["calibrate", "--tasks", "digits-mlp:999999", "--check"], "no target stored for digits-mlp:999999"),
        (["scores", "--families", "imagenet"], "unknown task family 'imagenet'"),
        (["scores", "--samples", "0"], "samples must be 1 or more, got 0"),
        (["fly"], "unknown command 'fly'"),
        (["replay", "nothing.jsonl"], "cannot read nothing.jsonl"),
        (["replay", "nothing.jsonl", "--seed", "3"], "--seed and --task go with --open-loop"),
        (["replay", "file"], "file, line 1 was changed"),
        (["replay", "."], "cannot read .: it is no file"),
        (["compare", "file", "file"], "file is a file; give a folder"),
        (["train", "--seed", "-1"], "seed must be 0 or more, got -1"),
        (["train", "--seed", str(2**32)], "seed must be 4294967295 or less, got 4294967296"),
        (["train", "--lanes", "100000000"], "lanes must be 16384 or less, got 100000000"),
        (["train", "--steps", "9" * 40], "steps must be 1000000000000 or less, got a number of about 40 digits"),
        (["train", "--threads", "1000000"], "threads must be 256 or less, got 1000000"),
        (["train", "--withheld", "nan"], "withheld must be a chance, in [0, 1]; got nan"),
        (["train", "--folder", "file"], "file is a file; give a folder"),
        (["train", "--folder", "file/in/it"], "file is a file; give a folder"),
        (["train", "--folder", "x" * 300], "File name too long"),
        (["evaluate", "core", "--folder", "file"], "file is a file; give a folder"),
        (["evaluate", "core", "--lanes", "100000000"], "lanes must be 16384 or less, got 100000000"),
        (["evaluate", "core", "--workers", "100000"], "workers must be 256 or less, got 100000"),
        (["evaluate", "core", "--seeds", "100000000"], "seeds must be 100000 or less, got 100000000"),
        (["evaluate", "core", "--rate-spread", "nan"], "rate_spread must lie in [0, 2]"),
        (["evaluate", "core", "--suite"], "suite is empty; give at least one"),
        (["evaluate", "core", "--competitors"], "competitors is empty; give at least one"),
        (["evaluate"], "bundles is empty; give at least one"),
        (["bench", "--seconds", "nan"], "seconds must lie in [0.001, 3600]; got nan"),
        (["bench", "--seconds", "inf"], "seconds must lie in [0.001, 3600]; got inf"),
        (["bench", "--lanes", "100000000"], "lanes must be 16384 or less, got 100000000"),
        (["programs", "--folder", "file"], "file is a file; give a folder"),
        (["programs", "--workers", "0"], "workers must be 1 or more, got 0"),
        (["programs", "--seeds", "0"], "seeds must be 1 or more, got 0"),
        (["scores", "--docs", "file"], "file is a file; give a folder"),
        (["prices", "--docs", "file"], "file is a file; give a folder"),
        (["prices", "--microbatch", "0"], "microbatch must be 1 or more, got 0"),
        (["tune", "--kinds"], "kinds is empty; give at least one"),
        (["tune", "--prices"], "prices is empty; give at least one"),
        (["tune", "--tasks", "0"], "tasks must be 1 or more, got 0"),
        (["tune", "--configurations", "-1"], "configurations must be 0 or more, got -1"),
        (["calibrate", "--workers", "0"], "workers must be 1 or more, got 0"),
        (["calibrate", "--tasks", "mixtures:-1"], "a task is named family:seed"),
        (["demo", "--seed", "-1"], "seed must be 0 or more, got -1"),
        (["demo", "--seeds", "0"], "seeds must be 1 or more, got 0"),
    ],
)
def test_what_cannot_be_is_one_line_without_a_traceback(
    arguments: list[str], message: str, loopwright: Command, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder, and no ledger\n")
    result = loopwright(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error:")]) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "runs"}


def test_unknown_settings_are_errors(loopwright: Command, tmp_path: Path) -> None:
    result = loopwright("train", "--stpes", "5", cwd=tmp_path)
    assert result.returncode == 2
    assert "--stpes" in result.stderr + result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_scripts_run_as_files(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
    assert stopped.value.code == 0
    assert f"loopwright {name}" in capsys.readouterr().out
