"""The compiled kernels of the CPU as the operations see them: which level runs, and tensors as addresses and strides.

`culnig_kernels._cpu` (csrc/cpu/) holds the loops. torch comes first: the extension uses the OpenMP threads that torch
has loaded.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import torch

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""What the loops read and write, and their names for it."""

LEVEL_VARIABLE = "CULNIG_CPU_LEVEL"
"""Environment: `baseline`, `avx2` or `avx512` in place of the best that the machine has; `none` for plain torch."""

NOWHERE = (0, 0)
"""The place of rows that are not there."""


def level() -> str | None:
    """The set of vector instructions in use; None where the compiled kernels are not there or not wanted.

    Raises:
        ValueError: the environment names a level that this machine does not have.
    """
    wanted = os.environ.get(LEVEL_VARIABLE)
    if wanted == "none" or extension() is None:
        return None
    known = levels()
    if wanted is not None and wanted not in known:
        raise ValueError(f"{LEVEL_VARIABLE} must be none, {' or '.join(known)} on this machine, not {wanted!r}")
    return wanted or known[-1]


@functools.cache
def levels() -> list[str]:
    """The sets of vector instructions that this machine has, the best one last."""
    known: list[str] = extension().levels()
    return known


@functools.cache
def extension() -> Any:
    """The compiled module, None where it cannot be had."""
    try:
        return importlib.import_module("culnig_kernels._cpu")
    except ImportError:  # not built, or without the OpenMP library that it was built with
        return None


def machine(*tensors: torch.Tensor | None) -> Any:
    """What runs the kernels for tensors of one type; None when plain torch must."""
    given = [tensor for tensor in tensors if tensor is not None]
    if given[0].dtype not in TYPES or any(tensor.dtype != given[0].dtype for tensor in given):
        return None
    if any(tensor.numel() == 0 or tensor.dim() < 1 for tensor in given):
        return None
    chosen = level()
    return None if chosen is None else extension().Machine(chosen, torch.get_num_threads())


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """The kernels read columns that lie next to each other."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def scale(weight: torch.Tensor, offset: float) -> torch.Tensor:
    """float32 [H]: what a norm multiplies with."""
    return (offset + weight.to(torch.float32)).contiguous()


def lengths(of: torch.Tensor) -> torch.Tensor:
    """int64 [S], as the loops read them."""
    return of.to("cpu", torch.int64).contiguous()


def address(tensor: torch.Tensor | None) -> int:
    """Where a contiguous tensor begins; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def rows(tensor: torch.Tensor) -> tuple[int, int]:
    """Address of [rows, columns], and elements from one row to the next."""
    return tensor.data_ptr(), tensor.stride(0)


def samples(tensor: torch.Tensor) -> tuple[int, int, int]:
    """Address of [S, T, columns], and elements from one sample, and from one position, to the next."""
    return tensor.data_ptr(), tensor.stride(0), tensor.stride(1)
