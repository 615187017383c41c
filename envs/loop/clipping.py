"""Clipping the norm of a gradient (Pascanu et al. 2013), as ``torch.nn.utils.clip_grad_norm_`` does."""

import math
from collections.abc import Sequence

import torch


@torch.no_grad()
def clip_gradients(gradients: Sequence[torch.Tensor], threshold: float) -> None:
    """Scale the gradients, in place, so that the norm of all together is ``threshold`` at most.

    On a CPU, where to read a number is to wait for nothing, a small part of torch's own operations is enough.
    """
    if threshold == math.inf:
        return
    if all(gradient.is_cpu for gradient in gradients):
        norms: list[float] = torch.stack(torch._foreach_norm(list(gradients))).tolist()
        norm = math.sqrt(sum(norm * norm for norm in norms))
        if not norm <= threshold:
            torch._foreach_mul_(list(gradients), threshold / (norm + 1e-6))
        return
    shrinkage = (threshold / (torch.nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1.0)
    for device in {gradient.device for gradient in gradients}:
        torch._foreach_mul_([gradient for gradient in gradients if gradient.device == device], shrinkage.to(device))
