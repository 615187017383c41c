"""The update rules: what their directions are, on matrices of every shape, with and without rows of zeros."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import Muon

from loopwright.envs.loop.plan import OPTIMIZERS, LoopPlan
from loopwright.envs.loop.update_rules import (
    MATRIX_RULES,
    STEP_RMS,
    Parts,
    balance,
    direct_batch,
    orthogonalise,
    take_step,
)

SHAPES = [(1, 5), (5, 1), (8, 8), (32, 64), (64, 32), (10, 196)]
sizes = st.integers(1, 12)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_balancing_brings_rows_and_columns_to_equal_size(shape: tuple[int, int]) -> None:
    stretched = draw(*shape) * 10 ** draw(shape[0], 1, seed=1) * 10 ** draw(1, shape[1], seed=2)
    square = balance(stretched).square()
    torch.testing.assert_close(square.mean(0), torch.ones_like(square[0]), rtol=1e-6, atol=0)
    torch.testing.assert_close(square.mean(1), torch.ones_like(square[:, 0]), rtol=0.5, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalising_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    values = torch.linalg.svdvals(orthogonalise(draw(*shape)))
    assert values.min() > 0.5
    assert values.max() < 1.3


@settings(max_examples=60)
@given(sizes, sizes, st.sampled_from(list(MATRIX_RULES)), st.floats(-30, 15), st.integers(0, 99))
def test_directions_do_not_depend_on_the_scale_and_have_the_size_of_adamws(
    rows: int, columns: int, rule: str, exponent: float, seed: int
) -> None:
    matrix = draw(rows, columns, seed=seed).float()
    direct = MATRIX_RULES[rule]
    plain, scaled = direct(matrix, matrix, 0.9), direct(*(2.0 ** round(exponent) * matrix,) * 2, 0.9)
    torch.testing.assert_close(plain, scaled, rtol=1e-3, atol=1e-4)
    assert STEP_RMS / 2 < plain.square().mean().sqrt() < STEP_RMS * 1.3


@pytest.mark.parametrize("rule", MATRIX_RULES)
def test_rows_and_columns_of_zeros_stay_zero(rule: str) -> None:
    matrix = draw(6, 9)
    matrix[2], matrix[:, 4] = 0.0, 0.0
    for zeros in (matrix, torch.zeros(6, 9)):
        direction = MATRIX_RULES[rule](zeros, zeros, 0.9)
        assert torch.isfinite(direction).all()
        assert direction[2].abs().max() < 1e-6
        assert direction[:, 4].abs().max() < 1e-6


@pytest.mark.parametrize("rule", MATRIX_RULES)
def test_a_batch_of_matrices_is_each_of_them(rule: str) -> None:
    """To the bit, however many there are: an audit log is executed again in other company."""
    for shape in (*SHAPES, (32, 30), (2, 32), (24, 33), (48, 196), (96, 32)):
        many = draw(37, 1, *shape).float()
        beta1 = torch.linspace(0, 0.9, 37).view(37, 1, 1, 1)
        whole = direct_batch(rule, many, many.flip(0), beta1)
        for some in (slice(0, 1), slice(3, 5), slice(2, 9), slice(0, 36)):
            assert torch.equal(whole[some], direct_batch(rule, many[some], many.flip(0)[some], beta1[some]))


def test_muon_is_torchs_own_but_for_its_precision() -> None:
    """Torch iterates in bfloat16; its gradients agree to the two or three digits that that has."""
    start, gradients = draw(24, 16).float(), [draw(24, 16, seed=seed).float() for seed in range(1, 6)]
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    optimizer = Muon([theirs], lr=0.1, weight_decay=0.3, momentum=0.8, adjust_lr_fn="match_rms_adamw")
    plan = LoopPlan(optimizer="muon", learning_rate=0.1, weight_decay=0.3, momentum=0.8)
    state = [torch.zeros_like(start)], [torch.zeros_like(start)]
    for gradient in gradients:
        theirs.grad = gradient
        optimizer.step()
        take_step(plan, Parts([ours], [gradient], *state), 0.1, 0.1)
    moved = (theirs.detach() - start).norm()
    assert (ours - theirs.detach()).norm() < 0.03 * moved


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_every_rule_keeps_the_same_state(rule: str) -> None:
    """So that a switch finds what it needs."""
    weights, gradients = [draw(4, 3), draw(4)], [draw(4, 3, seed=1), draw(4, seed=1)]
    momenta, second_moments = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    before = [w.clone() for w in weights]
    plan = LoopPlan(optimizer=rule, momentum=0.8, second_momentum=0.9, learning_rate=1e-2)
    take_step(plan, Parts(weights, gradients, momenta, second_moments), 0.2, 0.1)
    for w, old, g, m, v in zip(weights, before, gradients, momenta, second_moments, strict=True):
        torch.testing.assert_close(m, 0.2 * g)
        torch.testing.assert_close(v, 0.1 * g * g)
        assert not torch.equal(w, old)
        if rule == "sgd":
            torch.testing.assert_close(old - w, 1e-2 * 0.2 * g)
        elif rule == "adamw" or w.dim() == 1:
            torch.testing.assert_close(old - w, 1e-2 * g.sign(), rtol=1e-5, atol=0)
        else:
            assert (old - w).square().mean().sqrt().item() == pytest.approx(1e-2 * STEP_RMS, rel=0.3)
    assert math.isfinite(sum(float(w.sum()) for w in weights))
