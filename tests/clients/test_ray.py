"""Work on a Ray cluster, here one of this machine: the same results, and nothing lost with a worker."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")

from loopwright.agents.controllers.bundle import load_policy
from loopwright.agents.judging.results import read_results
from loopwright.agents.judging.workers import work_apart, working_on_ray
from loopwright.scripts.main import main


@pytest.fixture
def cluster() -> Iterator[None]:
    with working_on_ray():
        yield


@pytest.mark.usefixtures("cluster")
def test_a_part_of_a_lost_worker_is_done_again(tmp_path: Path) -> None:
    def fall_once(number: int, folder: Path) -> tuple[int, int]:
        """A part whose worker is killed at the first try."""
        tried = folder / str(number)
        if not tried.exists():
            tried.write_text("once")
            if number % 2:
                os.kill(os.getpid(), signal.SIGKILL)
        return number, os.getpid()

    found = list(work_apart(fall_once, ((number, tmp_path) for number in range(4)), 2))
    assert sorted(number for number, _ in found) == [0, 1, 2, 3]
    assert os.getpid() not in {worker for _, worker in found}


@pytest.mark.slow
def test_an_evaluation_comes_out_the_same_run_for_run(tmp_path: Path) -> None:
    common = ["evaluate", "core", "--suite", "demo-new", "--seeds", "1", "--competitors", "constant", "--workers", "2"]
    for backend in ("local", "ray"):
        assert main([*common, "--backend", backend, "--folder", str(tmp_path / backend)]) == 0
    (_, local), (_, remote) = (read_results(tmp_path / backend / "runs.jsonl") for backend in ("local", "ray"))
    by_key = {record.key: record for record in local}
    assert len(remote) == len(local) > 5
    assert all(record == by_key[record.key] for record in remote)


def test_an_address_without_the_backend_is_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["evaluate", "core", "--address", "auto", "--folder", str(tmp_path)]) == 2
    assert "needs --backend ray; got 'auto'" in capsys.readouterr().err


def test_rllib_trains_a_policy_that_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "trained")
    small = ["--steps", "64", "--lanes", "4", "--suite", "demo-new", "--no-compile"]
    assert main(["rllib", "--folder", folder, *small]) == 0
    policy = load_policy(tmp_path / "trained" / "policy.safetensors")
    assert policy.knobs.name == "core"
    assert policy.training["decisions"] >= 64
    judged = ["--suite", "demo-new", "--seeds", "1", "--competitors", "constant", "--folder", str(tmp_path / "judged")]
    assert main(["evaluate", f"{folder}/policy.safetensors", *judged]) == 0
    assert "demo-new: against constant the agent needs" in capsys.readouterr().out
    assert main(["rllib", "--folder", folder, "--lanes", "0"]) == 2
