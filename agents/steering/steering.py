"""attach: a controller steers a user's own training loop, through hooks of its optimizer.

A decision is taken every so many updates, from the same statistics, by the same observation and the same policy as in
the environments. What it may set is what the optimizer has: ``groups`` says how each holds it.
"""

import math
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch.optim import Optimizer

from loopwright.agents.controllers.bundle import load_policy
from loopwright.agents.controllers.policy import Policy
from loopwright.agents.steering.average import WeightAverage
from loopwright.agents.steering.groups import Groups
from loopwright.agents.steering.prices import LivePrices
from loopwright.agents.steering.snapshots import LoopSnapshot
from loopwright.envs.loop.context import Context
from loopwright.envs.loop.errors import LoopwrightError
from loopwright.envs.loop.guard import FINE, RATE_FACTOR, VERDICTS, Guard
from loopwright.envs.loop.knobs import KNOBS
from loopwright.envs.loop.ledger import Author, Ledger, read_versions
from loopwright.envs.loop.memory import load_memory, save_memory
from loopwright.envs.loop.observation import name_features
from loopwright.envs.loop.observer import Observer, Reading
from loopwright.envs.loop.plan import OPTIMIZERS, LoopPlan, name_column, stack_plans
from loopwright.envs.loop.probe import Probe
from loopwright.envs.loop.telemetry import SUMS, WINDOW, Statistics, summarise

LEAVE = ("arithmetic", "_xp", "_slots")  # what observer and guard do not remember but use
_ATTACHED = "_loopwright_steering"


def attach(optimizer: Optimizer, policy: Policy | Path | str = "core", steps: int | None = None, **options: Any) -> "Steering":
    """Let a policy steer the loop that ``optimizer`` makes the updates of.

    Call ``steering.step(loss)`` once per iteration, after ``optimizer.step()``; see ``Steering``.

    Args:
        optimizer: of torch or of its kind, with parameter groups.
        policy: a saved policy, a path to one, or the name of one that the package brings along.
        steps: how many updates there will be; None where that is open.
        options: see ``Steering``.
    """
    return Steering(optimizer, policy if isinstance(policy, Policy) else load_policy(policy), steps, **options)
