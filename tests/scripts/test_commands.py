"""The commands, run as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def loopwright(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "loopwright.scripts.main", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


def test_train_then_evaluate(tmp_path: Path) -> None:
    trained = loopwright("train", "--folder", "agent", "--steps", "256", "--lanes", "16", "--no-compile", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "decision" in trained.stderr  # the progress bar
    evaluated = loopwright(
        "evaluate", "agent/policy.safetensors", "--folder", "out", "--suites", "new", "--seeds", "1", cwd=tmp_path
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert "breast-cancer:" in evaluated.stdout
    assert (tmp_path / "out/evaluation.png").stat().st_size > 10_000
    result = json.loads((tmp_path / "out/evaluation.json").read_text())
    ratios = result["ratios"]
    keys = {"suite", "method", "against", "unit", "point", "low", "high", "hit_rate", "against_hit_rate"}
    assert all(set(record) == keys for record in ratios)
    assert {"new", "constant", "cosine"} <= {r["suite"] for r in ratios} | {r["against"] for r in ratios}
    assert len(result["runs"]) == len(result["suites"]["new"]) * 6


def test_tasks_lists_every_family(tmp_path: Path) -> None:
    listed = loopwright("tasks", "--json", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    families = {row["family"]: row for row in json.loads(listed.stdout)}
    assert families["digits-conv"]["kind"] == "image"
    assert families["breast-cancer"]["splits"] == {"train": 320, "control": 96, "target": 152}
    assert all(row["source"] for row in families.values())
    table = loopwright("tasks", cwd=tmp_path)
    assert all(name in table.stdout for name in families)


def test_bench_reports_every_figure(tmp_path: Path) -> None:
    result = loopwright("bench", "--json", "--seconds", "0.2", "--lanes", "4", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    for name in ("lanes_eager", "lanes_compiled", "plain_loop", "reference_loop", "matmul_limit"):
        assert figures["steps_per_second"][name] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--algorithm", "DQN"], "unknown algorithm 'DQN'"),
        (["train", "--knobs", "warp"], "unknown knob or knob set 'warp'"),
        (["train", "--lanes", "0"], "lanes must be 1 or more, got 0"),
        (["train", "--suite", "nope"], "unknown suite 'nope'"),
        (["evaluate", "nothing.safetensors"], "no bundle at nothing.safetensors"),
        (["calibrate", "--suite", "nope"], "unknown suite 'nope'"),
        (["train", "--resume"], "nothing to resume"),
        (["fly"], "unknown command 'fly'"),
    ],
)
def test_what_cannot_be_is_one_line_without_a_traceback(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = loopwright(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error:")]) == 1


def test_unknown_settings_are_errors(tmp_path: Path) -> None:
    result = loopwright("train", "--stpes", "5", cwd=tmp_path)
    assert result.returncode == 2
    assert "--stpes" in result.stderr + result.stdout


def test_scripts_run_as_files(tmp_path: Path) -> None:
    for name in ("train", "evaluate", "tasks", "bench", "calibrate", "tune", "demo"):
        command = [sys.executable, "-W", "ignore", str(ROOT / "scripts" / f"{name}.py"), "--help"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        assert f"loopwright {name}" in result.stdout
