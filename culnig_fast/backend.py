"""The one place that decides which implementation of the numeric operations runs."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from culnig_kernels import compiled, native, reference, validate

from culnig_fast.errors import CulnigError

BACKENDS = ("auto", "triton", "reference")

_KERNEL_HOMES = {
    "actgrad_reduce": "actgrad",
    "accumulate": "accumulate",
    "gated_act": "gated_act",
    "gated_act_backward": "gated_act_backward",
    "rms_norm": "rms_norm",
    "rms_norm_backward": "rms_norm",
    "rotary": "rotary",
    "rotary_backward": "rotary_backward",
    "qkv_backward": "qkv_backward",
}
"""Operation → module of `culnig_kernels` that holds its launcher."""


@dataclass(frozen=True)
class Operations:
    """What the engine calls; signatures and meaning as in `culnig_kernels.reference`."""

    actgrad_reduce: Callable[..., torch.Tensor]
    accumulate: Callable[..., None]
    gated_act: Callable[..., torch.Tensor]
    gated_act_backward: Callable[..., Any]
    rms_norm: Callable[..., Any]
    rms_norm_backward: Callable[..., torch.Tensor]
    rotary: Callable[..., torch.Tensor]
    rotary_backward: Callable[..., Any]
    qkv_backward: Callable[..., Any]


def resolve(backend: str) -> Operations:
    """The numeric operations of the named backend.

    Args:
        backend: `triton` (the kernels: CUDA tensors, or any under TRITON_INTERPRET=1), `reference` (plain
            torch) or `auto` (for each tensor, the Triton kernels on CUDA where Triton is installed, the
            compiled ones on a CPU, else plain torch). float64 always runs on plain torch.

    Raises:
        CulnigError: an unknown name, or `triton` where the kernels cannot run.
    """
    if backend not in BACKENDS:
        raise CulnigError(f"unknown backend {backend!r}; choose from {', '.join(BACKENDS)}")
    with_triton = importlib.util.find_spec("triton") is not None
    if backend == "triton":
        if not with_triton:
            raise CulnigError("backend 'triton' needs the triton package, which is not installed; use 'auto'")
        if not torch.cuda.is_available() and not validate.interpreted():
            raise CulnigError("backend 'triton' needs a CUDA device and there is none; use 'auto' or 'reference'")
    return Operations(**{field.name: _dispatch(field.name, backend, with_triton) for field in fields(Operations)})


def resolved(backend: str, weight: torch.Tensor) -> str:
    """What the operations of a backend run on for tensors like a model's weight: `reference`, `triton`, or `compiled`
    with the vector instructions; other roundings are made by each.

    Args:
        backend: that `resolve` takes.
        weight: of the model.
    """
    if backend == "reference" or weight.dtype == torch.float64:
        return "reference"
    if backend == "triton" or (weight.is_cuda and importlib.util.find_spec("triton") is not None):
        return "triton"
    if weight.device.type == "cpu":
        return f"compiled ({compiled.level()})" if compiled.level() is not None else "blocks of torch"
    return "reference"


def _dispatch(name: str, backend: str, with_triton: bool) -> Callable[..., Any]:
    """One operation, which looks at its first tensor to decide where it runs."""
    plain: Callable[..., Any] = getattr(reference, name)
    if backend == "reference":
        return plain
    on_cpu: Callable[..., Any] = getattr(native, name, plain)

    @functools.cache
    def launcher() -> Callable[..., Any]:
        """Imports Triton, which is left until a tensor needs it."""
        found: Callable[..., Any] = getattr(importlib.import_module(f"culnig_kernels.{_KERNEL_HOMES[name]}"), name)
        return found

    def run(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if tensor.dtype == torch.float64:
            return plain(tensor, *args, **kwargs)
        if backend == "triton":
            _require_reachable(tensor)
        elif tensor.device.type == "cpu":
            return on_cpu(tensor, *args, **kwargs)
        elif not tensor.is_cuda or not with_triton:
            return plain(tensor, *args, **kwargs)
        if name == "accumulate":  # its totals are written in place: a dense copy would take the sums
            return launcher()(tensor, *args, **kwargs)
        dense = [_dense(a) if isinstance(a, torch.Tensor) else a for a in (tensor, *args)]
        return launcher()(*dense, **kwargs)

    return run


def _require_reachable(tensor: torch.Tensor) -> None:
    if not tensor.is_cuda and not validate.interpreted():
        raise CulnigError(
            f"backend 'triton' got a tensor on {tensor.device}; put the model on a CUDA device or use 'auto'"
        )


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """The kernels read columns that lie next to each other; autograd may hand over an expanded gradient."""
    if tensor.dim() == 0 or tensor.shape[-1] == 1 or tensor.stride(-1) == 1:
        return tensor
    return tensor.contiguous()
