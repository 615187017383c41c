"""Bundles that somebody else may have written: what they say is checked before anything is made of it."""

import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import Canary
from safetensors.torch import save_file

from loopwright.agents.controllers.bundle import load_policy, save_policy
from loopwright.agents.controllers.carded import compute_digest
from loopwright.agents.controllers.policy import Policy, build_network
from loopwright.envs.loop.errors import BundleError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import OBSERVATION_NAMES
from loopwright.envs.loop.plan import LoopPlan

FEATURES = len(OBSERVATION_NAMES)
Forge = Callable[[Path, dict[str, Any], dict[str, torch.Tensor]], None]


def make_policy() -> Policy:
    knobs = KnobSet("lr+clip")
    torch.manual_seed(0)
    return Policy(build_network([FEATURES, 4, sum(knobs.choices)], "tanh"), knobs, LoopPlan())


def forge(path: Path, card: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """A bundle whose checksum is right, whatever is in it."""
    save_file(weights, path, metadata={"card": json.dumps({**card, "sha256": compute_digest(card, weights)})})


def with_header(path: Path, text: bytes, size: int = 0) -> None:
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    if size:
        os.truncate(path, size)


CARDS: list[tuple[dict[str, Any], str]] = [
    ({"widths": [FEATURES, 5, 12]}, "'0.bias' is float32 .4., where float32 .5. is expected"),
    ({"widths": [FEATURES, 4, 10**6, 12]}, "'2.bias' is float32 .12., where float32 .1000000. is expected"),
    (
        {"widths": [FEATURES, 10**9, 12]},
        "card: widths.1: Input should be less than or equal to 1000000, got 1000000000",
    ),
    ({"widths": [FEATURES, 0, 12]}, "card: widths.1: Input should be greater than or equal to 1, got 0"),
    ({"widths": [FEATURES]}, "card: widths: List should have at least 2 items"),
    ({"widths": [1] * 1000}, "card: widths: List should have at most 65 items"),
    ({"widths": "12"}, "card: widths: Input should be a valid array, got '12'"),
    ({"knobs": "lr"}, "outputs, where lr takes"),
    ({"knobs": "all+lr"}, "unknown knob or knob set 'all'"),
    ({"knobs": ["lr"]}, "card: knobs: Input should be a valid string"),
    ({"action": "box"}, "outputs, where lr.clip takes 2"),
    ({"action": "any"}, "card: action: must be one of discrete, box, flat, got 'any'"),
    ({"activation": "eval"}, "card: activation: must be one of tanh, relu"),
    ({"squashed": 0}, "card: squashed: Input should be a valid boolean, got 0"),
    ({"start": {}}, "card: start.optimizer: Field required"),
    ({"start": LoopPlan().as_json() | {"learning_rate": -1.0}}, "card: start: learning_rate must be finite in float32"),
    ({"start": LoopPlan().as_json() | {"batch": 1.5}}, "card: start.batch: Input should be a valid integer, got 1.5"),
    ({"training": []}, "card: training: Input should be an object"),
    ({"training": {"suite": 3}}, "card: training.suite: Input should be a valid string, got 3"),
    ({"training": {"settings": {"ticks_per_decision": "x"}}}, "card: training.settings.ticks_per_decision: Input"),
    ({"training": {"decisions": -1}}, "card: training.decisions: Input should be greater than or equal to 0, got -1"),
    ({"observation_version": 10**4}, "was made for observation version 10000"),
    ({"observation_names": ["loss"]}, "with 1 features; this package has"),
    ({"format": "loopwright-policy-9"}, "format 'loopwright-policy-9'; this version reads 'loopwright-policy-1'"),
    ({"more": 1}, "card: more: Extra inputs are not permitted, got 1"),
]


@pytest.mark.parametrize(("change", "problem"), CARDS, ids=[problem[:40] for _, problem in CARDS])
def test_what_a_card_says_is_checked(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    policy, path = make_policy(), tmp_path / "policy.safetensors"
    forge(path, policy.describe(), policy.weights)
    assert load_policy(path).fingerprint == policy.fingerprint
    forge(path, policy.describe() | change, policy.weights)
    with pytest.raises(BundleError, match=problem):
        load_policy(path)


def test_an_entry_that_a_card_lacks_is_named(tmp_path: Path) -> None:
    policy, path = make_policy(), tmp_path / "policy.safetensors"
    for name in policy.describe():
        forge(path, {k: v for k, v in policy.describe().items() if k != name}, policy.weights)
        with pytest.raises(BundleError, match=f"card: {name}: Field required"):
            load_policy(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"0.weight": torch.full((4, FEATURES), math.nan)}, "0.weight holds numbers that are not finite"),
        ({"2.bias": torch.full((12,), math.inf)}, "2.bias"),
        ({"0.weight": torch.zeros(4, FEATURES, dtype=torch.float64)}, "'0.weight' is float64"),
        ({"0.weight": torch.zeros(4, FEATURES, dtype=torch.bfloat16)}, "dtype must be one of F32"),
        ({"0.weight": torch.zeros(FEATURES, 4)}, "'0.weight' is float32"),
        ({"more": torch.zeros(1)}, "'more' is float32 .1., where nothing is expected"),
        ({"0.bias": None}, "'0.bias' is nothing, where float32 .4. is expected"),
    ],
)
def test_weights_are_those_of_the_card(change: dict[str, torch.Tensor | None], problem: str, tmp_path: Path) -> None:
    policy, path = make_policy(), tmp_path / "policy.safetensors"
    weights = {name: value for name, value in (policy.weights | change).items() if value is not None}
    if any(value.dtype == torch.bfloat16 for value in weights.values()):
        save_file(weights, path, metadata={"card": json.dumps({**policy.describe(), "sha256": "0" * 64})})
    else:
        forge(path, policy.describe(), weights)
    with pytest.raises(BundleError, match=problem):
        load_policy(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "a header of 0 bytes"),
        (b"{}" + b" " * (2 << 20), "a header of 2097154 bytes, of at most 1048576"),
        (b"[]", "header: Input should be an object"),
        (b"{}", "header: Input should be a valid dictionary"),
        (b'{"__metadata__":{}}', "header: card: Field required"),
        (b'{"__metadata__":{"card":"{}"}}', "card: format: Field required"),
        (b'{"__metadata__":{"card":"{}"},"a":{}}', "header, 'a': dtype: Field required"),
        (b'{"__metadata__":{"card":"{}"},"__metadata__":{}}', "'__metadata__' stands there twice"),
        (b'{"__metadata__":{"card":' + b"[" * 10**5, "nested too deeply"),
        (b'{"__metadata__":{"card":"{}"},"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}', "shape.0: Input"),
    ],
)  # fmt: skip
def test_a_header_is_checked(text: bytes, problem: str, tmp_path: Path) -> None:
    with_header(tmp_path / "policy.safetensors", text)
    with pytest.raises(BundleError, match=problem):
        load_policy(tmp_path / "policy.safetensors")


def test_little_memory_is_asked_for_whatever_a_bundle_says(tmp_path: Path) -> None:
    policy = make_policy()
    wide, sparse, nested = (tmp_path / f"{name}.safetensors" for name in ("wide", "sparse", "nested"))
    forge(wide, policy.describe() | {"widths": [FEATURES, 10**6, 12]}, policy.weights)  # 300 MB of weights
    count = 1 << 30
    entry = f'"0.weight":{{"dtype":"F32","shape":[{count}],"data_offsets":[0,{4 * count}]}}'
    with_header(sparse, ('{"__metadata__":{"card":"{}"},' + entry + "}").encode(), 4 * count + 200)
    with_header(nested, b'{"__metadata__":{"card":"{}"},"a":[' + b"[]," * (300_000) + b"[]]}")
    code = f"""
import resource
from loopwright.agents.controllers.bundle import load_policy, list_policies
from loopwright.envs.loop.errors import BundleError
load_policy(list_policies()[0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in {[str(wide), str(sparse), str(nested)]!r}:
    try:
        load_policy(path)
    except BundleError:
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.split()) == 3, run.stdout
    assert max(map(int, run.stdout.split())) < 150  # MB


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "policy.safetensors"
    torch.save({"weights": Canary(canary)}, path)
    with pytest.raises(BundleError, match="not a readable policy bundle"):
        load_policy(path)
    assert not canary.exists()
    torch.load(path.rename(tmp_path / "policy.pt"), weights_only=False)
    assert canary.exists()  # the canary sings where a pickle is opened


def test_what_cannot_be_written_down_is_refused(tmp_path: Path) -> None:
    policy = make_policy()
    policy.training["options"] = {"clip": math.inf}
    with pytest.raises(BundleError, match="its card is not JSON"):
        save_policy(policy, tmp_path / "policy.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["adamw", "all", "core"])
def test_a_shipped_policy_is_its_network(name: str) -> None:
    policy = load_policy(name)
    seen = torch.randn(16, policy.features, generator=torch.Generator().manual_seed(0))
    outputs = policy.network(seen).detach().numpy()
    wanted = np.stack([outputs[:, part].argmax(axis=1) for part in policy.knobs.parts], axis=1)
    np.testing.assert_array_equal(policy.act(seen.numpy()), wanted)
