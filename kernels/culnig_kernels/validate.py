"""Checks of arguments, shared by the launchers and the reference; each message names the argument."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import torch

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
REDUCTIONS = ("max", "sum", "mean", "absmax", "last")
FOLDED_REDUCTIONS = ("max", "sum")
"""Those that the kernels of whole layers fold into their backward."""
PADDINGS = ("exclude", "zero")


def option(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of the known ones."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def shape(name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    """Raise ValueError unless the tensor has exactly the expected shape."""
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must be {list(expected)}, not {list(tensor.shape)}")


class Segments(NamedTuple):
    """Which rows belong to which sample."""

    bounds: torch.Tensor
    """[S] lengths, or [S+1] cumulative ones when packed."""
    packed: bool
    samples: int
    """S."""


def segments(name: str, x: torch.Tensor, lengths: torch.Tensor | None, cu_seqlens: torch.Tensor | None) -> Segments:
    """The samples that x holds: right-padded [S, T, K] by lengths, or packed [T, K] by cu_seqlens.

    Values are checked only where that costs no synchronisation, that is for CPU tensors.

    Raises:
        ValueError: not exactly one of lengths and cu_seqlens is given, it does not fit x, or a sample is empty.
    """
    if lengths is not None and cu_seqlens is None:
        label, bounds, layout = "lengths", lengths, "[S, T, K]"
    elif cu_seqlens is not None and lengths is None:
        label, bounds, layout = "cu_seqlens", cu_seqlens, "[T, K]"
    else:
        raise ValueError("give exactly one of lengths and cu_seqlens")
    packed = lengths is None
    if x.dim() != (2 if packed else 3):
        raise ValueError(f"{name} must be {layout} beside {label}, not {list(x.shape)}")
    if bounds.dtype not in (torch.int32, torch.int64) or bounds.dim() != 1:
        raise ValueError(f"{label} must be one-dimensional int32 or int64, not {bounds.dtype} {list(bounds.shape)}")
    if packed and len(bounds) < 1:
        raise ValueError("cu_seqlens must hold a 0 and the end of each sample")
    if not packed:
        shape(label, bounds, (x.shape[0],))
    if seen_by_host(bounds):
        _check_bounds(bounds, x.shape[-2], packed)
    return Segments(bounds, packed, len(bounds) - packed)


def seen_by_host(tensor: torch.Tensor) -> bool:
    """Whether the tensor's values can be looked at without waiting for a device."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def keep(name: str, x: torch.Tensor, kept: torch.Tensor, segments: Segments) -> None:
    """Raise ValueError unless kept marks positions of x, and some of each sample where that can be seen."""
    shape("keep", kept, tuple(x.shape[:-1]))
    if kept.dtype != torch.bool:
        raise ValueError(f"keep must be bool, not {kept.dtype}")
    if not (seen_by_host(kept) and seen_by_host(segments.bounds)):
        return
    if segments.packed:
        samples = list(kept.split(segments.bounds.diff().tolist()))
    else:
        samples = [row[:length] for row, length in zip(kept, segments.bounds.tolist(), strict=True)]
    empty = [s for s, sample in enumerate(samples) if not sample.any()]
    if empty:
        raise ValueError(f"keep marks no position of sample {empty[0]}; a sample without positions has no score")


def _check_bounds(bounds: torch.Tensor, rows: int, packed: bool) -> None:
    if packed:
        sizes = bounds.diff()
        if bounds[0] != 0 or bounds[-1] != rows or not (sizes >= 1).all():
            raise ValueError(f"cu_seqlens must rise from 0 to {rows}; a sample without tokens has no score")
    elif not ((bounds >= 1) & (bounds <= rows)).all():
        raise ValueError(f"lengths must lie in 1…{rows}; a sample without tokens has no score")


def floats(**tensors: torch.Tensor | None) -> None:
    """Raise ValueError unless the tensors have dtypes that the kernels load."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in FLOATS:
            raise ValueError(f"{name} must be bfloat16, float16 or float32, not {tensor.dtype}")


def launchable(dtypes: tuple[torch.dtype, ...] = FLOATS, /, **tensors: torch.Tensor | None) -> None:
    """Raise ValueError unless kernels can take the tensors.

    Args:
        dtypes: those that the kernel loads.
        tensors: by the name of the argument; their last dimension must be dense, all must be on one CUDA device, and
            none may expect a gradient back.
    """
    device: torch.device | None = None
    recorded = torch.is_grad_enabled()
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype not in dtypes:
            floats(**{name: tensor})
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise ValueError(f"the last dimension of {name} must be contiguous; its stride is {tensor.stride(-1)}")
        if recorded and tensor.requires_grad:
            raise ValueError(
                f"{name} requires a gradient, which a kernel does not pass on: detach it, or call in torch.no_grad()"
            )
        if device is None:
            device = tensor.device
            if device.type != "cuda" and not interpreted():
                raise ValueError(
                    f"{name} is on {device}: the Triton kernels take CUDA tensors, "
                    "or CPU ones when TRITON_INTERPRET=1 is set before the first import of triton"
                )
        elif tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, the other arguments on {device}")


def interpreted() -> bool:
    """Whether Triton kernels run on the CPU, in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def rows(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as [rows, columns], without a copy.

    Raises:
        ValueError: the leading dimensions do not share one row stride.
    """
    try:
        return tensor.view(math.prod(tensor.shape[:-1]), tensor.shape[-1])
    except RuntimeError:
        raise ValueError(f"the leading dimensions of {name} must share one row stride, not {tensor.stride()}") from None
