"""The type that the reference works in."""

from __future__ import annotations

import torch


def work_dtype(*tensors: torch.Tensor | None) -> torch.dtype:
    """float64 when any of the tensors is, else float32."""
    double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32
