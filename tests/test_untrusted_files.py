"""Every kind of file that is read, damaged and forged: read or refused on one line; nothing executed, little memory."""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import damage
from damage import forge as forge_values
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from loopwright.agents.controllers import tuned
from loopwright.agents.controllers.bundle import load_policy, save_policy
from loopwright.agents.controllers.carded import compute_digest
from loopwright.agents.controllers.policy import Policy, build_network
from loopwright.agents.judging import typical_schedule
from loopwright.agents.judging.parts import PARTS_KIND, PartTime, read_parts, simulate
from loopwright.agents.judging.records import read_records
from loopwright.agents.judging.results import RESULTS_KIND, RunRecord, TracePoint
from loopwright.agents.judging.timing import TIMINGS_KIND, Timing
from loopwright.agents.training import trainer
from loopwright.agents.training.checkpoint import restore_checkpoint, write_checkpoint
from loopwright.agents.training.config import TrainingConfig
from loopwright.envs.engine import prices
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.ledger import LEDGER_FORMAT, read_ledger
from loopwright.envs.loop.observation import OBSERVATION_NAMES
from loopwright.envs.loop.plan import LoopPlan
from loopwright.envs.loop.sealed import seal_all
from loopwright.scripts.real_programs.trial import TRIALS_KIND, TrainingTrial

PLANS = (LoopPlan(), LoopPlan(learning_rate=0.5, clip=2.0, optimizer="sgd"))
TRACE = tuple(TracePoint(100.0 * n, 1.0 / n, plan) for n, plan in enumerate(PLANS, start=1))
HEADER = {"suites": {"s": ["a"]}, "seeds": [1, 2], "settings": {"guard": 3}, "methods": {"agent": ["one"]}}
RUNS = [RunRecord("agent", "a", seed, "hit", 300.5, 900.0, 0.25, 0.75, 0, 280.25, TRACE) for seed in (1, 2)]
CURVE = ((0, 0.0, 2.0), (10, 1.0, 0.5))
SETTING = {"lr": 0.1, "weight_decay": 0.0, "warm_up": 0.1}
TRIAL = TrainingTrial("p", "AdamW", 0, "contest", "0" * 64, SETTING, 0.5, True, 640, 1.0, CURVE)
PART = PartTime(0, "runs", "MLP", 640, 64, 64, 640.0, 2.0, 62.0)
PROGRAMS = {"versions": {"torch": "2"}, "tuning": 3, "programs": {"p": {"batch_size": 64}}}

Lines = list[dict[str, Any]]
SEALED: dict[str, tuple[Lines, Callable[[Path], object]]] = {
    "runs": ([{"format": RESULTS_KIND.format, **HEADER}, *(run.as_json() for run in RUNS)],
             lambda path: read_records(path, RESULTS_KIND)),
    "timings": ([{"format": TIMINGS_KIND.format, **HEADER}, Timing("agent", "a", (1e-5, 2e-5), 0.25).as_json()],
                lambda path: read_records(path, TIMINGS_KIND)),
    "parts": ([{"format": PARTS_KIND.format, **HEADER}, PART.as_json()], lambda path: simulate(read_parts(path), 64)),
    "trials": ([{"format": TRIALS_KIND.format, **PROGRAMS}, TRIAL.as_json()],
               lambda path: read_records(path, TRIALS_KIND)),
    "ledger": ([{"format": LEDGER_FORMAT, "task": "a", "seed": 1}, {"decision": 1, "plan": PLANS[1].as_json()}],
               read_ledger),
}  # fmt: skip
SCHEDULE = {"made_by": {"agent": "me", "prices": "measured"}, "plans": [plan.as_json() for plan in PLANS]}


def read_competitors(path: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned, "TUNED_FILE", path)
        return [tuned.load_competitors(prices=name) for name in tuned.read_tuned_lists() or ["gradients"]]


def read_price_list(path: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prices, "PRICES_FILE", path)
        return prices.read_prices.__wrapped__()


def some(values: dict[str, Any], count: int) -> dict[str, Any]:
    return dict(list(values.items())[:count])


PLAIN: dict[str, tuple[Any, Callable[[Path], object]]] = {
    "training": (asdict(TrainingConfig(options={"n_steps": 3, "rates": [1e-3, 1e-4]})), trainer._DESCRIBED.read),
    "schedule": (SCHEDULE, typical_schedule._SCHEDULE.read),
    "tuned": ({name: some(own, 6) for name, own in tuned.read_tuned_lists().items()}, read_competitors),
    "prices": ({"provenance": {"threads": 1}, "entries": json.loads(prices.PRICES_FILE.read_text())["entries"][:3]},
               read_price_list),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to write files into. Nothing that is in them may have been executed in the end."""
    folder = tmp_path_factory.mktemp("untrusted")
    yield folder
    assert not (folder / "canary").exists()


def read_or_refuse(read: Callable[[Path], object], path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        read(path)
    except LoopwrightError as problem:
        said = str(problem)
        assert said.isprintable(), said
        assert len(said) < 1000


CHANCES = 10 * settings.default.max_examples  # a thousand, and a hundred thousand in ``make nightly``
PARTS = max(1, CHANCES // 10_000)  # Hypothesis keeps what it has tried in memory: two kilobytes a chance


@pytest.fixture(params=range(PARTS))
def part(request: pytest.FixtureRequest) -> int:
    """Of the chances; which there are is drawn anew for each."""
    number: int = request.param
    return number


def fuzz(test: Callable[..., None]) -> Callable[..., None]:
    """So many chances, in parts."""
    chances = settings(max_examples=CHANCES // PARTS)(given(chance=st.randoms(use_true_random=True))(test))
    return pytest.mark.fuzz(pytest.mark.usefixtures("part")(chances))


@pytest.mark.parametrize("kind", SEALED)
@fuzz
def test_sealed_lines(kind: str, chance: random.Random, place: Path) -> None:
    lines, read = SEALED[kind]
    if chance.random() < 0.5:
        content = damage(seal_all(lines)[0], chance, place / "canary")
    else:
        forged = (
            forge_values(lines, chance) if chance.random() < 0.3 else [*lines[:-1], forge_values(lines[-1], chance)]
        )
        content = seal_all(line for line in forged if isinstance(line, dict))[0] if isinstance(forged, list) else b""
    read_or_refuse(read, place / f"{kind}.jsonl", content)


@pytest.mark.parametrize("kind", PLAIN)
@fuzz
def test_plain_json(kind: str, chance: random.Random, place: Path) -> None:
    values, read = PLAIN[kind]
    damaged = damage(json.dumps(values).encode(), chance, place / "canary")
    content = damaged if chance.random() < 0.5 else json.dumps(forge_values(values, chance)).encode()
    read_or_refuse(read, place / f"{kind}.json", content)


def forge_carded(whole: bytes, chance: random.Random) -> bytes:
    """Other entries on the card, or other tensors, and a checksum that is right."""
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    card, tensors = json.loads(header["__metadata__"]["card"]), load(whole)
    if chance.random() < 0.7:
        card = forge_values(card, chance)
    else:
        name = chance.choice(sorted(tensors))
        own = tensors[name]
        other = chance.choice((torch.zeros(3), torch.zeros(0), own + 2, own.double(), own + torch.inf, None))
        tensors |= {chance.choice((name, "more", f"{name}/x", "policy.optimizer/7/step")): other}
        tensors = {name: value for name, value in tensors.items() if value is not None}
    if isinstance(card, dict):
        card |= {"sha256": compute_digest(card, tensors)}
    return save(tensors, metadata={"card": json.dumps(card)})


@fuzz
def test_bundles(chance: random.Random, place: Path) -> None:
    path = place / "whole.safetensors"
    if not path.exists():
        knobs = KnobSet("lr+clip")
        save_policy(
            Policy(build_network([len(OBSERVATION_NAMES), 2, sum(knobs.choices)], "relu"), knobs, PLANS[1]), path
        )
    whole = path.read_bytes()
    content = damage(whole, chance, place / "canary") if chance.random() < 0.5 else forge_carded(whole, chance)
    read_or_refuse(load_policy, place / "bundle.safetensors", content)


class Model:
    """What a checkpoint takes of a model of Stable-Baselines3's: its parts by name, and its counters."""

    def __init__(self) -> None:
        self.policy = torch.nn.Linear(3, 2)
        self.optimizer = torch.optim.Adam(self.policy.parameters())
        self.policy(torch.ones(3)).sum().backward()
        self.optimizer.step()
        self.log_ent_coef = torch.zeros(1)
        self.num_timesteps = self._n_updates = self._episode_num = 3

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "optimizer"], ["log_ent_coef"]


@fuzz
def test_checkpoints(chance: random.Random, place: Path) -> None:
    path = place / "checkpoint.safetensors"
    if not path.exists():
        write_checkpoint(Model(), path)
    whole, model = path.read_bytes(), Model()
    content = damage(whole, chance, place / "canary") if chance.random() < 0.5 else forge_carded(whole, chance)
    read_or_refuse(lambda path: restore_checkpoint(model, path), place / "damaged.safetensors", content)


def test_the_whole_ones_are_read(place: Path) -> None:
    """Else nothing above would say anything."""
    for kind, (lines, read) in SEALED.items():
        (place / kind).write_bytes(seal_all(lines)[0])
        read(place / kind)
    for kind, (values, read) in PLAIN.items():
        (place / kind).write_text(json.dumps(values))
        read(place / kind)


def test_no_file_takes_much_memory(tmp_path: Path) -> None:
    """The largest that are read, made to take as much as they can, in a process of their own."""
    full = 1 << 20
    worst = {
        "lists.json": b"[" + b"[]," * (full // 3 - 2) + b"[]]",
        "objects.json": b"[" + b'{"a":{}},' * (full // 9 - 2) + b"{}]",
        "names.json": b"{" + b",".join(b'"%05x":0' % n for n in range(full // 10 - 1)) + b"}",
        "numbers.json": b'{"made_by": {"agent": "", "prices": ""}, "plans": [' + b"0," * (full // 2 - 60) + b"0]}",
    }
    for name, content in worst.items():
        assert full * 0.8 < len(content) <= full
        (tmp_path / name).write_bytes(content)
    header = {"format": RESULTS_KIND.format, **HEADER}
    columns = {"cost": [0] * 300_000, "loss": ["x"] * 700_000, "first": {}, "changed": {}}
    (tmp_path / "runs.jsonl").write_bytes(seal_all([header, RUNS[0].as_json() | {"trace": columns}])[0])
    code = f"""
import resource
from pathlib import Path
from loopwright.agents.judging import typical_schedule
from loopwright.agents.judging.results import read_results
from loopwright.envs.loop.errors import LoopwrightError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path({str(tmp_path)!r}).iterdir()):
    try:
        (read_results if path.suffix == ".jsonl" else typical_schedule._SCHEDULE.read)(path)
        raise SystemExit("read: " + path.name)
    except LoopwrightError as problem:
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, path.name, str(problem)[-80:])
"""
    (tmp_path / "seeds.jsonl").write_bytes(seal_all([header | {"seeds": ["x"] * 900_000}])[0])
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 6, run.stdout
    assert max(int(line.split()[0]) for line in run.stdout.splitlines()) < 400, run.stdout
