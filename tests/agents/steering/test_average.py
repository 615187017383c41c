import copy

import pytest
import torch

from loopwright.agents.steering.average import INTAKES, WeightAverage


def follow(average: WeightAverage, half_life: float, updates: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights on a noisy way, and what an average over every one of them comes to, from the first on."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(50)
    exact = weights
    for update in range(updates):
        weights += 0.1 + 0.3 * torch.randn(50, generator=generator)
        exact = weights.clone() if update == 0 else torch.lerp(weights, exact, 0.5 ** (1 / half_life))
        average.update([weights], half_life)
    return weights, exact


@pytest.mark.parametrize("half_life", [2.0, 8.0, 32.0, 128.0])
def test_it_is_about_that_over_every_update(half_life: float) -> None:
    average = WeightAverage()
    weights, exact = follow(average, half_life, 403)
    raw = weights.clone()
    with average.applied([weights]):
        assert (weights - exact).norm() < 0.15 * (raw - exact).norm()
    torch.testing.assert_close(weights, raw)
    if half_life <= INTAKES:
        torch.testing.assert_close(average.weights[0], exact)


def test_weights_are_taken_in_a_few_times_in_a_half_life() -> None:
    average, taken = WeightAverage(), 0
    weights = torch.zeros(3)
    for _ in range(64):
        weights += 1
        before = [w.clone() for w in average.weights]
        average.update([weights], 32.0)
        taken += not before or not torch.equal(before[0], average.weights[0])
    assert taken == 8
    average.update([weights], 0.0)
    assert average.weights == []


def test_it_goes_on_from_what_was_saved_between_two_of_them() -> None:
    average = WeightAverage()
    weights, _ = follow(average, 32.0, 21)
    again = WeightAverage()
    again.load_state_dict(copy.deepcopy(average.state_dict()))
    for _ in range(9):
        weights += 1
        for each in (average, again):
            each.update([weights], 32.0)
    for each in (average, again):
        with each.applied([weights]):
            pass
    torch.testing.assert_close(average.weights[0], again.weights[0], rtol=0, atol=0)
