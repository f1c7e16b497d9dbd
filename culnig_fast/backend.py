"""The one place that decides which implementation of the numeric operations runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from culnig_kernels import cpu, reference, validate

from culnig_fast.errors import CulnigError

BACKENDS = ("auto", "triton", "reference")


@dataclass(frozen=True)
class Operations:
    """What an attributor calls; signatures and meaning as in `culnig_kernels.reference`."""

    actgrad_reduce: Callable[..., torch.Tensor]
    accumulate: Callable[..., None]


def resolve(backend: str) -> Operations:
    """The numeric operations of the named backend.

    Args:
        backend: `triton` (the kernels: CUDA tensors, or any under TRITON_INTERPRET=1), `reference` (plain
            torch) or `auto` (for each tensor, the kernels on CUDA where Triton is installed, cache-sized blocks
            on a CPU, else plain torch).

    Raises:
        CulnigError: an unknown name, or `triton` where the kernels cannot run.
    """
    if backend not in BACKENDS:
        raise CulnigError(f"unknown backend {backend!r}; choose from {', '.join(BACKENDS)}")
    if backend == "reference":
        return Operations(reference.actgrad_reduce, reference.accumulate)
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        raise CulnigError("backend 'triton' needs the triton package, which is not installed; use 'auto'")
    if backend == "auto":
        return Operations(_auto_actgrad_reduce, _auto_accumulate)
    if not torch.cuda.is_available() and not validate.interpreted():
        raise CulnigError("backend 'triton' needs a CUDA device and there is none; use 'auto' or 'reference'")
    return Operations(_triton_actgrad_reduce, _triton_accumulate)


def _triton_actgrad_reduce(
    act: torch.Tensor,
    grad: torch.Tensor,
    lengths: torch.Tensor,
    reduction: str = "max",
    padding: str = "exclude",
) -> torch.Tensor:
    from culnig_kernels.actgrad import actgrad_reduce

    _require_reachable(act)
    return actgrad_reduce(_dense(act), _dense(grad), lengths, reduction, padding)


def _triton_accumulate(
    scores: torch.Tensor,
    weight: torch.Tensor,
    group: torch.Tensor,
    totals: torch.Tensor,
    clamp_below_zero: bool = False,
) -> None:
    from culnig_kernels.accumulate import accumulate

    _require_reachable(scores)
    accumulate(scores, weight, group, totals, clamp_below_zero)


def _auto_actgrad_reduce(
    act: torch.Tensor,
    grad: torch.Tensor,
    lengths: torch.Tensor,
    reduction: str = "max",
    padding: str = "exclude",
) -> torch.Tensor:
    run = _run_on(act, _triton_actgrad_reduce, reference.actgrad_reduce, cpu.actgrad_reduce)
    return run(act, grad, lengths, reduction, padding)


def _auto_accumulate(
    scores: torch.Tensor,
    weight: torch.Tensor,
    group: torch.Tensor,
    totals: torch.Tensor,
    clamp_below_zero: bool = False,
) -> None:
    run = _run_on(scores, _triton_accumulate, reference.accumulate, reference.accumulate)
    run(scores, weight, group, totals, clamp_below_zero)


def _run_on(
    tensor: torch.Tensor, triton: Callable[..., Any], plain: Callable[..., Any], on_cpu: Callable[..., Any]
) -> Callable[..., Any]:
    """The fastest of an operation's implementations that can take the tensor."""
    if tensor.device.type == "cpu":
        return on_cpu
    return triton if tensor.is_cuda and importlib.util.find_spec("triton") is not None else plain


def _require_reachable(tensor: torch.Tensor) -> None:
    if not tensor.is_cuda and not validate.interpreted():
        raise CulnigError(
            f"backend 'triton' got a tensor on {tensor.device}; put the model on a CUDA device or use 'auto'"
        )


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """The kernels read columns that lie next to each other; autograd may hand over an expanded gradient."""
    return tensor if tensor.shape[-1] == 1 or tensor.stride(-1) == 1 else tensor.contiguous()
