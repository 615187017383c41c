"""Checkpoints: a training goes on as Stable-Baselines3's own files would let it, and nothing in one is executed."""

import io
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import Canary
from safetensors.torch import load_file, save_file
from stable_baselines3.common.base_class import BaseAlgorithm

from loopwright.agents.controllers.carded import compute_digest
from loopwright.agents.training.checkpoint import CHECKPOINT, restore_checkpoint, write_checkpoint
from loopwright.agents.training.config import ALGORITHMS, CONTRIB_ALGORITHMS, TrainingConfig, find_algorithm
from loopwright.agents.training.trainer import train
from loopwright.envs.episode.settings import EpisodeSettings
from loopwright.envs.loop.errors import CheckpointError, LoopwrightError
from loopwright.envs.sb3 import SB3VecEnv
from loopwright.envs.vector import TrainingLoopVectorEnv

QUICK = EpisodeSettings(budget_factor=0.4, ticks_per_decision=4)
SMALL_PPO = {"n_steps": 8, "batch_size": 16, "n_epochs": 1}
SMALL: dict[str, dict[str, Any]] = {
    "PPO": SMALL_PPO, "MaskablePPO": SMALL_PPO, "RecurrentPPO": SMALL_PPO, "A2C": {"n_steps": 8},
    "TRPO": {"n_steps": 8, "batch_size": 16}, "ARS": {"n_delta": 2, "n_eval_episodes": 1},
}  # fmt: skip
OFF_POLICY = {"learning_starts": 8, "batch_size": 16}


def make_model(algorithm: str, **options: Any) -> BaseAlgorithm:
    action = TrainingConfig(algorithm=algorithm).action_kind
    envs = TrainingLoopVectorEnv(
        2, tasks=["breast-cancer:1"], knobs="lr+clip", action=action, settings=QUICK, autoreset_mode="SameStep"
    )
    own = {"policy_kwargs": {"net_arch": [8]}, **SMALL.get(algorithm, OFF_POLICY), **options}
    make: Callable[..., BaseAlgorithm] = find_algorithm(algorithm)
    network = {"ARS": "LinearPolicy", "RecurrentPPO": "MlpLstmPolicy"}.get(algorithm, "MlpPolicy")
    return make(network, SB3VecEnv(envs), seed=0, device="cpu",
                **(own if algorithm != "ARS" else SMALL["ARS"]))  # fmt: skip


def weights(model: Any) -> dict[str, torch.Tensor]:
    found = {name: value.clone() for name, value in model.policy.state_dict().items()}
    if getattr(model, "log_ent_coef", None) is not None:
        found["log_ent_coef"] = model.log_ent_coef.detach().clone()
    return found


@pytest.mark.parametrize("algorithm", [name for name in (*ALGORITHMS, *CONTRIB_ALGORITHMS) if name != "ARS"])
def test_a_training_goes_on_to_the_bit_as_from_a_file_of_stable_baselines3(algorithm: str, tmp_path: Path) -> None:
    model: Any = make_model(algorithm)
    model.learn(24)
    write_checkpoint(model, tmp_path / CHECKPOINT)
    model.save(tmp_path / "theirs.zip")
    ours: Any = make_model(algorithm)
    restore_checkpoint(ours, tmp_path / CHECKPOINT)
    assert ours.num_timesteps == model.num_timesteps
    assert ours._n_updates == model._n_updates > 0
    results = []
    for continued in (ours, type(model).load(tmp_path / "theirs.zip", env=make_model(algorithm).get_env())):
        before = weights(continued)
        continued.set_random_seed(7)
        continued.learn(24, reset_num_timesteps=False)
        after = weights(continued)
        assert any(not torch.equal(before[name], after[name]) for name in before)
        results.append((before, after))
    for own, theirs in zip(*results, strict=True):
        assert own.keys() == theirs.keys()
        assert all(torch.equal(own[name], theirs[name]) for name in own)


def test_what_random_search_moves_comes_back(tmp_path: Path) -> None:
    model: Any = make_model("ARS")
    model.learn(60)
    assert model.weights.any()
    write_checkpoint(model, tmp_path / CHECKPOINT)
    again: Any = make_model("ARS")
    restore_checkpoint(again, tmp_path / CHECKPOINT)
    assert torch.equal(again.weights, torch.nn.utils.parameters_to_vector(model.policy.parameters()))
    assert again.num_timesteps == model.num_timesteps


def test_no_file_of_a_folder_is_executed_on_resuming(tmp_path: Path) -> None:
    config = TrainingConfig(
        steps=32, lanes=4, suite="demo-new", compile=False, options={**SMALL["PPO"], "policy_kwargs": {"net_arch": [8]}}
    )
    folder, canary = tmp_path / "agent", tmp_path / "canary"
    train(config, folder, show_progress=False, settings=QUICK)
    model: Any = make_model("PPO")
    model.bird = Canary(canary)
    foreign = io.BytesIO()
    model.save(foreign)
    pickled = pickle.dumps(Canary(canary))
    stored = io.BytesIO()
    torch.save({"policy": Canary(canary)}, stored)
    for content in (foreign.getvalue(), pickled, stored.getvalue()):
        (folder / CHECKPOINT).write_bytes(content)
        with pytest.raises(CheckpointError, match="not a readable checkpoint"):
            train(config, folder, resume=True, show_progress=False, settings=QUICK)
    (folder / CHECKPOINT).unlink()
    (folder / "checkpoint.zip").write_bytes(foreign.getvalue())
    with pytest.raises(CheckpointError, match="holds pickles, which can run anything, and is not opened"):
        train(config, folder, resume=True, show_progress=False, settings=QUICK)
    with pytest.raises(LoopwrightError, match="already holds a training"):
        train(config, folder, show_progress=False, settings=QUICK)
    assert not canary.exists()
    type(model).load(folder / "checkpoint.zip")
    assert canary.exists()  # the canary sings where a pickle is opened


def forge(path: Path, change: dict[str, Any], tensors: dict[str, torch.Tensor | None]) -> None:
    """The checkpoint with other entries and tensors, and a checksum that is right."""
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    card = json.loads(json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]["card"]) | change
    kept = {name: value for name, value in (load_file(path) | tensors).items() if value is not None}
    save_file(kept, path, metadata={"card": json.dumps({**card, "sha256": compute_digest(card, kept)})})


OPTIMIZER, STEP = "policy.optimizer", "policy.optimizer/0/step"


@pytest.mark.parametrize(
    ("change", "tensors", "problem"),
    [
        ({"format": "x"}, {}, "format 'x'; this version reads 'loopwright-checkpoint-1'"),
        ({"algorithm": "SAC"}, {}, "it is one of SAC, not of PPO"),
        ({"decisions": -1}, {}, "card: decisions: Input should be greater than or equal to 0, got -1"),
        ({"decisions": 10**20}, {}, "card: decisions: Input should be less than"),
        ({"optimizers": {}}, {}, "optimizers must be policy.optimizer"),
        ({"optimizers": {OPTIMIZER: {"rates": [], "numbers": {}}}}, {}, "policy.optimizer has 1 groups"),
        ({"optimizers": {OPTIMIZER: {"rates": [-1.0], "numbers": {}}}}, {}, "rates.0: Input should be greater"),
        ({"optimizers": {OPTIMIZER: {"rates": [1.0], "numbers": {"0": {"x": 1}}}}}, {}, "must have the numbers"),
        ({}, {"policy/action_net.bias": torch.zeros(3)}, "'policy/action_net.bias' is float32 .3., where float32 .12."),
        ({}, {"policy/action_net.bias": None}, "'policy/action_net.bias' is nothing"),
        ({}, {"policy/more": torch.zeros(3)}, "'policy/more' is float32 .3., where nothing is expected"),
        ({}, {STEP: None}, "'policy.optimizer/0/step' is nothing"),
        ({}, {STEP: torch.zeros((), dtype=torch.int64)}, "'policy.optimizer/0/step' is int64"),
        ({}, {"policy.optimizer/99/step": torch.zeros(())}, "'policy.optimizer/99/step' is float32"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_refused(
    change: dict[str, Any], tensors: dict[str, torch.Tensor | None], problem: str, tmp_path: Path
) -> None:
    model = make_model("PPO")
    model.learn(32)
    path = tmp_path / CHECKPOINT
    write_checkpoint(model, path)
    forge(path, {}, {})
    restore_checkpoint(make_model("PPO"), path)
    forge(path, change, tensors)
    again = make_model("PPO")
    before = weights(again)
    with pytest.raises(CheckpointError, match=problem):
        restore_checkpoint(again, path)
    assert all(torch.equal(value, before[name]) for name, value in weights(again).items())


def test_a_damaged_folder_is_one_line(tmp_path: Path) -> None:
    config = TrainingConfig(
        steps=32, lanes=4, suite="demo-new", compile=False, options={**SMALL["PPO"], "policy_kwargs": {"net_arch": [8]}}
    )
    train(config, tmp_path, show_progress=False, settings=QUICK)
    described, checkpoint = tmp_path / "training.json", tmp_path / CHECKPOINT
    whole, kept = described.read_text(), checkpoint.read_bytes()
    for content, problem in {
        "": "training.json: not JSON",
        "[]": "training.json: Input should be an object",
        whole.replace('"lanes": 4', '"lanes": "2"'): "training.json: lanes: Input should be a valid integer, got '2'",
        whole.replace('"lanes": 4', '"lanes": 0'): "training.json: lanes must be 1 or more, got 0",
        whole.replace('"seed": 0', '"seed": 0, "more": 1'): "training.json: more: Unexpected keyword argument",
        whole.replace('"lanes": 4', '"lanes": 5'): r"another configuration \(lanes differ\)",
    }.items():
        described.write_text(content)
        with pytest.raises(LoopwrightError, match=problem):
            train(config, tmp_path, resume=True, show_progress=False, settings=QUICK)
        assert described.read_text() == content
    described.write_text(whole)
    for content, problem in {
        b"": "a header of 0 bytes",
        kept[:-1]: "where its header speaks of",
        kept + b"x": "larger than",
        kept[:-1] + bytes([kept[-1] ^ 1]): "was altered: its SHA-256",
    }.items():
        checkpoint.write_bytes(content)
        with pytest.raises(CheckpointError, match=problem):
            train(config, tmp_path, resume=True, show_progress=False, settings=QUICK)
    checkpoint.write_bytes(kept)
    train(config, tmp_path, resume=True, show_progress=False, settings=QUICK)
