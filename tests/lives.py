"""Lives: work that is killed again and again, at random moments or within a save, and goes on each time.

    python tests/lives.py train FOLDER KILLS SEED

The imports are done once; each life is a fork. Work that came to its end begins anew in another folder, until so many
lives were killed: FOLDER/0, FOLDER/1, ... are then what was come to, and the last line printed says how many.
"""

import io
import math
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import loopwright.scripts.calibrate
from loopwright.agents.judging.results import read_results
from loopwright.agents.steering.attach import attach
from loopwright.agents.training.checkpoint import CHECKPOINT
from loopwright.agents.training.config import TrainingConfig
from loopwright.agents.training.trainer import train
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.holding import LOCK
from loopwright.envs.loop.ledger import read_ledger
from loopwright.inner_tasks import targets
from loopwright.inner_tasks.suites import _SUITES, Draws, Suite
from loopwright.scripts.main import main

ONE = "one"
_SUITES[ONE] = Suite(ONE, (Draws({"breast-cancer": 2}, 100_000),), "small tasks")
QUICK = EpisodeSettings(budget_factor=0.2, ticks_per_decision=4)
CALLS = ("fsync", "replace", "write", "link")  # of the system, within saves


def train_a_policy(folder: Path) -> None:
    config = TrainingConfig(
        lanes=2, suite=ONE, compile=False, steps=128, checkpoint_every=32,
        options={"n_steps": 8, "batch_size": 8, "n_epochs": 1},
    )  # fmt: skip
    train(config, folder, resume=(folder / CHECKPOINT).exists(), show_progress=False, settings=QUICK)


def read_policy(folder: Path) -> Any:
    return (folder / "policy.safetensors").read_bytes()


def evaluate(folder: Path, workers: str = "1") -> None:
    arguments = ["evaluate", "core", "--suite", ONE, "--seeds", "1", "--lanes", "2", "--workers", workers, "--ledgers"]
    assert main([*arguments, "--folder", str(folder), "--competitors", "constant"]) == 0


def evaluate_by_two(folder: Path) -> None:
    evaluate(folder, "2")


def read_runs(folder: Path) -> Any:
    _, records = read_results(folder / "runs.jsonl")
    assert all((folder / name).stat().st_size for name in ("report.html", "summary.json", "evaluation.png"))
    for ledger in (folder / "ledgers" / "agent").glob("[!.]*.jsonl"):
        read_ledger(ledger)
    return sorted(records, key=lambda record: record.key)


def calibrate(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for module in (targets, loopwright.scripts.calibrate):
        module.TARGETS_FILE = folder / "targets.json"  # type: ignore[attr-defined]
    targets._stored.cache_clear()
    assert main(["calibrate", "--tasks", "quadratic:3", "rosenbrock:7"]) == 0


def read_found(folder: Path) -> Any:
    targets.TARGETS_FILE = folder / "targets.json"
    stored = targets.read_targets()
    return stored.targets, stored.dropped


def steer_a_loop(folder: Path) -> None:
    """As a user would write it, who keeps the state every 20 iterations."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    steering = attach(optimizer, steps=600, prices=None, ledger=folder / "steered.jsonl")
    saved, beside, first = folder / "state.pt", folder / "beside.pt", 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        steering.load_state_dict(state["steering"])
        first = state["done"]
    for number in range(first, 601):
        if number % 20 == 0 and (number > first or number == 0):
            parts = {"model": model, "optimizer": optimizer, "steering": steering}
            content = io.BytesIO()
            torch.save({name: own.state_dict() for name, own in parts.items()} | {"done": number}, content)
            beside.write_bytes(content.getvalue())
            os.replace(beside, saved)
        inputs = torch.randn(32, 20, generator=torch.Generator().manual_seed(number))
        loss = nn.functional.cross_entropy(model(inputs), (inputs[:, :3].sum(1) > 0).long())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steering.step(loss)


def read_steered(folder: Path) -> Any:
    state = torch.load(folder / "state.pt", weights_only=True)
    entries = read_ledger(folder / "steered.jsonl").entries
    return [weights.tolist() for weights in state["model"].values()], state["done"], entries


WORK: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "train": (train_a_policy, read_policy),
    "evaluate": (evaluate, read_runs),
    "evaluate by two": (evaluate_by_two, read_runs),
    "calibrate": (calibrate, read_found),
    "attach": (steer_a_loop, read_steered),
}


def fall_within_a_save(after: int) -> None:
    """Be killed in the call of that number among those that saves are made of; of a write half is then done."""
    left = [after]

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                if name == "write":
                    call(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counted

    for name in CALLS:
        setattr(os, name, wrap(name, getattr(os, name)))


def begin(work: Callable[[Path], None], folder: Path, falls: int | None) -> int:
    """A life, in a process of its own."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        with (folder.parent / "errors").open("ab") as errors:
            os.dup2(errors.fileno(), 2)
        if falls is not None:
            fall_within_a_save(falls)
        work(folder)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def live(name: str, folder: Path, kills: int, seed: int) -> int:
    """How often the work came to its end, the first time undisturbed, while so many lives were killed."""
    work, rng = WORK[name][0], random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    killed, ends, begun_anew = 0, 0, True
    longest = 0.0  # that a life may last: as long as the first took, at most
    while killed < kills or begun_anew:
        falls = rng.randrange(24) if longest and rng.random() < 0.4 else None
        lasts = rng.uniform(0, longest) if longest and killed < kills else math.inf
        begun = time.monotonic()
        child = begin(work, folder / str(ends), falls if killed < kills else None)
        found = status = 0
        while not found and time.monotonic() - begun < lasts:
            time.sleep(0.005)
            found, status = os.waitpid(child, os.WNOHANG)
        if not found:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed, begun_anew = killed + 1, True
            continue
        assert status == 0, (folder / "errors").read_text()[-3000:]
        longest = longest or time.monotonic() - begun
        ends, begun_anew = ends + 1, False
    return ends


def fill(name: str, folder: Path) -> None:
    """Do the work on disks that are ever larger, but full: after every failure it goes on with what is there."""
    work = WORK[name][0]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    work(folder / "0")
    largest = max(path.stat().st_size for path in (folder / "0").rglob("*") if path.is_file())
    for share in (0.0, 0.001, 0.01, 0.1, 0.5, 0.9):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * largest), resource.RLIM_INFINITY))
        try:
            work(folder / "1")
        except (LoopwrightError, OSError) as problem:  # the latter from what a user saves
            print(f"error: {problem}", file=sys.stderr)
        except AssertionError:
            pass  # a command that has said what is the matter
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert not list_left(folder / "1")
    work(folder / "1")


def list_left(folder: Path) -> list[str]:
    """What was not cleared up in a folder."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".") and not path.name.endswith(LOCK)]


if __name__ == "__main__":
    if sys.argv[3] == "full":
        fill(sys.argv[1], Path(sys.argv[2]))
    else:
        print(live(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
