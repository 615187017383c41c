"""A policy's layers on arrays."""

import numpy as np
import pytest
import torch
from torch import nn

from loopwright import load_policy
from loopwright.agents.controllers.layers import read_layer


def make_blocks(shared: int, sizes: tuple[tuple[int, int], ...]) -> nn.Linear:
    """Blocks of so many rows and columns on the diagonal, beside columns that every row has."""
    blocks = torch.block_diag(*(torch.randn(size) for size in sizes))  # type: ignore[no-untyped-call]
    weight = torch.cat([blocks, torch.randn(len(blocks), shared)], dim=1)
    layer = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("sizes", [((8, 8), (8, 8), (8, 8)), ((3, 9), (20, 4), (1, 1), (5, 5)), ((6, 6),)])
@pytest.mark.parametrize("lanes", [1, 7])
def test_a_layer_of_blocks_is_the_layer(shared: int, sizes: tuple[tuple[int, int], ...], lanes: int) -> None:
    torch.manual_seed(0)
    layer = make_blocks(shared, sizes)
    inputs = torch.randn(lanes, layer.in_features)
    found = read_layer(layer)(inputs.numpy())
    np.testing.assert_allclose(found, layer(inputs).detach().numpy(), rtol=1e-5, atol=1e-5)
    assert found.dtype == np.float32


def test_rows_without_weights_give_their_bias() -> None:
    layer = make_blocks(0, ((4, 4), (4, 4), (4, 4)))
    with torch.no_grad():
        layer.weight[4:6] = 0
    found = read_layer(layer)(np.ones((1, 12), np.float32))
    np.testing.assert_allclose(found, layer(torch.ones(1, 12)).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "all", "core"])
def test_a_shipped_policy_is_its_network(name: str) -> None:
    policy = load_policy(name)
    seen = torch.randn(16, policy.features, generator=torch.Generator().manual_seed(0))
    outputs = policy.network(seen).detach().numpy()
    wanted = np.stack([outputs[:, part].argmax(axis=1) for part in policy.knobs.parts], axis=1)
    np.testing.assert_array_equal(policy.act(seen.numpy()), wanted)
