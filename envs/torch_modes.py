"""Torch's global modes: what a caller has chosen does not change what an environment computes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def in_own_modes() -> Iterator[None]:
    """Within it torch is not in inference mode and makes float32, whatever was chosen outside; a decorator too."""
    before = torch.get_default_dtype()
    if before is not torch.float32:
        torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False):
            yield
    finally:
        if before is not torch.float32:
            torch.set_default_dtype(before)
