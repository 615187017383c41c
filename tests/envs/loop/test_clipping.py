import math

import pytest
import torch

from loopwright.envs.loop.clipping import clip_gradients


@pytest.mark.parametrize("threshold", [0.1, 1.0, 100.0, math.inf, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("special", [None, math.inf, math.nan])
def test_it_clips_as_torch_does(threshold: float, dtype: torch.dtype, special: float | None) -> None:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((5, 3), (7,), ())]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    if special is not None:
        parameters[0].grad[1, 1] = special  # type: ignore[index]
    own = [parameter.grad.clone() for parameter in parameters]  # type: ignore[union-attr]
    clip_gradients(own, threshold)
    if threshold < math.inf:
        torch.nn.utils.clip_grad_norm_(parameters, threshold)
    for ours, theirs in zip(own, parameters, strict=True):
        torch.testing.assert_close(ours, theirs.grad, equal_nan=True)
