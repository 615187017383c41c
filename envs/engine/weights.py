"""The weights a run starts from: the same in every engine."""

import torch

from loopwright.inner_tasks.task import Task


def draw_weights(task: Task, seed: int) -> torch.Tensor:
    """The flat initial weights ``[parameters]`` of a run: PyTorch's default initialisation times the task's scale."""
    parameters = task.model.build(seed).parameters()
    return torch.cat([p.detach().flatten() for p in parameters]) * task.initial_scale
