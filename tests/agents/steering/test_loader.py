"""A loader that follows the plan: order by loss, batches in a row, and what it refuses."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from loopwright.agents.controllers.policy import Policy, build_network
from loopwright.agents.steering.attach import attach
from loopwright.agents.steering.loader import SteeredLoader
from loopwright.agents.steering.steering import Steering
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.knob_set import KnobSet
from loopwright.envs.loop.observation import OBSERVATION_NAMES
from loopwright.envs.loop.plan import CHOICES, LoopPlan

SAMPLES, BATCH = 64, 8
HARD_FIRST, EASY_FIRST = CHOICES["order"].index("hard-first"), CHOICES["order"].index("easy-first")


class Numbers(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, at: int) -> torch.Tensor:
        return torch.tensor(float(at))


def steer(knobs: str = "lr+order+echo") -> Steering:
    chosen = KnobSet(knobs)
    network = build_network([len(OBSERVATION_NAMES), 8, sum(chosen.choices)], "tanh")
    policy = Policy(network, chosen, LoopPlan(), training={"settings": {"ticks_per_decision": 16}})
    return attach(torch.optim.AdamW([nn.Parameter(torch.ones(3, 2))]), policy, prices=None)


def count_reads(loader: SteeredLoader, epochs: int) -> torch.Tensor:
    """How often each sample was read; its loss is its number."""
    counts = torch.zeros(SAMPLES)
    for _ in range(epochs):
        for batch in loader:
            loader.take_losses(batch)
            counts[batch.long()] += 1
    return counts


def test_shuffled_an_epoch_reads_every_sample_once() -> None:
    loader = steer().loader(Numbers(), BATCH)
    orders = [torch.cat(list(loader)) for _ in range(2)]
    assert len(loader) == SAMPLES // BATCH
    assert all(order.sort().values.tolist() == list(range(SAMPLES)) for order in orders)
    assert not torch.equal(*orders)
    again = steer().loader(Numbers(), BATCH)
    assert torch.equal(torch.cat(list(again)), orders[0])


@pytest.mark.parametrize(
    ("order", "most"), [(HARD_FIRST, slice(SAMPLES // 2, None)), (EASY_FIRST, slice(SAMPLES // 2))]
)
def test_order_prefers_samples_by_their_last_loss_once_all_were_seen(order: int, most: slice) -> None:
    steering = steer()
    loader = steering.loader(Numbers(), BATCH, by_loss=True)
    steering.plan["order"] = float(order)
    first = count_reads(loader, 2)
    assert (first > 0).sum() > 0.7 * SAMPLES  # unseen ones come first
    counts = count_reads(loader, 60)
    assert counts[most].sum() > 0.8 * counts.sum()  # the larger half holds the largest of three 7 times of 8


def test_echo_hands_a_batch_out_several_times() -> None:
    steering = steer()
    loader = steering.loader(Numbers(), BATCH)
    steering.plan["echo"] = 3.0
    batches = list(loader)
    assert len(batches) == 3 * SAMPLES // BATCH
    assert all(torch.equal(batches[3 * i], batches[3 * i + 2]) for i in range(SAMPLES // BATCH))


def test_the_knobs_of_a_loader_are_steered_only_where_there_is_one() -> None:
    steering = steer()
    assert steering._steered == [True, False, False]
    steering.loader(Numbers(), BATCH)
    assert steering._steered == [True, False, True]
    steering.loader(Numbers(), BATCH, by_loss=True)
    assert steering._steered == [True, True, True]


def test_a_policy_that_only_advises_leaves_the_loader_alone() -> None:
    steering = steer()
    steering.advise = True
    loader = steering.loader(Numbers(), BATCH, by_loss=True)
    steering.plan |= {"echo": 3.0, "order": float(HARD_FIRST)}
    assert torch.cat(list(loader)).sort().values.tolist() == list(range(SAMPLES))


def test_a_resumed_job_goes_on_with_the_next_epoch() -> None:
    steering = steer()
    loader = steering.loader(Numbers(), BATCH, by_loss=True)
    count_reads(loader, 1)
    state = steering.state_dict()
    expected = torch.cat(list(loader))
    resumed = steer()
    again = resumed.loader(Numbers(), BATCH, by_loss=True)
    resumed.load_state_dict(state)
    assert torch.equal(torch.cat(list(again)), expected)


def test_processes_that_load_ahead_change_nothing() -> None:
    one, two = (steer().loader(Numbers(), BATCH, by_loss=True, num_workers=n) for n in (0, 1))
    for first, second in zip(one, two, strict=True):
        two.take_losses(second)
        assert torch.equal(first, second)
    assert two._order.losses.tolist() == list(range(SAMPLES))


def test_what_a_loader_refuses() -> None:
    steering = steer()
    for wrong in (0, SAMPLES + 1):
        with pytest.raises(LoopwrightError, match=f"batch_size must lie between 1 and the 64 samples.*{wrong}"):
            steering.loader(TensorDataset(torch.zeros(SAMPLES)), wrong)
    loader = steering.loader(Numbers(), BATCH, by_loss=True)
    with pytest.raises(LoopwrightError, match="no batch was read"):
        steering.step(torch.zeros(BATCH))
    next(iter(loader))
    with pytest.raises(LoopwrightError, match=r"shape \[8\], got \[\]"):
        steering.step(torch.tensor(1.0))
    steering.step(torch.arange(8.0))
    assert float(steering._losses[-1]) == 3.5
