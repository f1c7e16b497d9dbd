"""Where every launcher gets its output from, so that a test can poison what a kernel forgets to write."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised contiguous tensor."""
    return torch.empty(tuple(shape), dtype=dtype, device=device)
