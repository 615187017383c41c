"""Compiled functions are kept on disk for other processes."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from loopwright.envs.engine.fusing import has_compiler

CODE = """
    import json, torch
    from torch._dynamo.utils import counters
    from loopwright.envs.engine.fusing import fuse

    def update(parameters, gradient, rate):
        moved = parameters - rate * torch.tanh(gradient).square()
        parameters.copy_(moved)
        return moved.sum(1)

    torch.manual_seed(0)
    example = [torch.randn(4, 33), torch.randn(4, 33), torch.rand(4, 1)]
    fused = fuse(update, [value.clone() for value in example], ("update",))
    parameters = example[0].clone()
    sums = fused(parameters, *example[1:])
    expected = update(example[0], *example[1:])
    torch.testing.assert_close(sums, expected)
    torch.testing.assert_close(parameters, example[0])
    found = {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss", "bypass")}
    print(json.dumps({"found": found, "sums": sums.tolist()}))
"""


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_another_process_finds_what_one_has_compiled(tmp_path: Path) -> None:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    results = []
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(CODE)],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        results.append(json.loads(run.stdout))
    assert results[0]["found"] == {"hit": 0, "miss": 1, "bypass": 0}
    assert results[1]["found"] == {"hit": 1, "miss": 0, "bypass": 0}
    assert results[0]["sums"] == results[1]["sums"]
