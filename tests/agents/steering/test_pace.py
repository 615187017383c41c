"""How far apart decisions lie."""

import pytest
import torch
from torch import nn

from loopwright.agents.steering.attach import attach
from loopwright.agents.steering.pace import STRETCH, count_decisions, find_spacing
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.telemetry import WINDOW


def test_spacing_doubles_after_every_stretch() -> None:
    assert [find_spacing(16, n) for n in (0, STRETCH - 1, STRETCH, 2 * STRETCH, 3 * STRETCH)] == [16, 16, 32, 64, 128]
    assert [count_decisions(16, n) for n in (0, 15, 16, 16 * STRETCH, 48 * STRETCH - 1, 48 * STRETCH)] == [
        0, 0, 1, STRETCH, 2 * STRETCH - 1, 2 * STRETCH,
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:SGD has nothing for")
def test_a_steered_loop_keeps_that_pace() -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with pytest.raises(LoopwrightError, match=f"every must be {WINDOW} or more, got 2"):
        attach(optimizer, every=2)
    decided = []
    steering = attach(optimizer, every=4, prices=None)
    for iteration in range(4 * STRETCH + 8 * 5):
        loss = nn.functional.cross_entropy(model(torch.randn(8, 4)), torch.arange(8) % 2)
        loss.backward()  # type: ignore[no-untyped-call]
        before = steering.decisions
        optimizer.step()
        optimizer.zero_grad()
        steering.step(loss)
        if steering.decisions > before:
            decided.append(iteration + 1)
    assert decided == [*range(4, 4 * STRETCH + 1, 4), *range(4 * STRETCH + 8, 4 * STRETCH + 41, 8)]
    assert steering.decisions == count_decisions(4, 4 * STRETCH + 40)
