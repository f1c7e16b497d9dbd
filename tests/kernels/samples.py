"""Inputs of the kernel tests: seeded tensors, and slices of wider ones."""

from __future__ import annotations

import torch

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int = 0) -> torch.Tensor:
    """Normal values; the same for the same shape and seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def draw_slice(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int = 0, before: int = 5
) -> torch.Tensor:
    """Columns of a wider tensor, as a fused projection gives them; its other columns are NaN."""
    wide = torch.full((*shape[:-1], before + shape[-1] + 3), float("nan"), dtype=dtype, device=device)
    wide[..., before : before + shape[-1]] = draw(shape, dtype, device, seed)
    return wide[..., before : before + shape[-1]]


def packed_bounds(lengths: list[int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """cu_seqlens of samples of the given lengths."""
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)
