"""Shared by all tests: one thread (small tensors, and workers beside us), and tasks of every shape."""

import os
import signal

import pytest
import torch
from hypothesis import settings

from loopwright.inner_tasks import Task, get_task

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
torch.set_num_threads(1)
for _ignored in (signal.SIGINT, signal.SIGHUP):  # by who runs the tests in the background: commands would inherit it
    if signal.getsignal(_ignored) is signal.SIG_IGN:
        signal.signal(_ignored, signal.default_int_handler if _ignored is signal.SIGINT else signal.SIG_DFL)
settings.register_profile("loopwright", deadline=None)  # machines are noisy; no test is about time
settings.register_profile("nightly", deadline=None, max_examples=10_000)  # pytest --hypothesis-profile nightly
settings.load_profile("loopwright")

SHAPES = ("mixtures:2", "digits-conv:0", "breast-cancer:1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, and with them their files: else one core waits for the other at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(params=SHAPES)
def any_task(request: pytest.FixtureRequest) -> Task:
    return get_task(request.param)


@pytest.fixture
def small_task() -> Task:
    """The cheapest shape."""
    return get_task("breast-cancer:1")
