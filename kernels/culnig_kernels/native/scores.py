"""Activation × gradient, reduced over each sample's positions."""

from __future__ import annotations

import torch

from culnig_kernels import allocate, compiled, cpu
from culnig_kernels.reference.scores import check_actgrad

REDUCTIONS = ("max", "sum", "mean", "absmax")


@torch.no_grad()
def actgrad_reduce(
    act: torch.Tensor,
    grad: torch.Tensor,
    lengths: torch.Tensor | None = None,
    reduction: str = "max",
    padding: str = "exclude",
    *,
    cu_seqlens: torch.Tensor | None = None,
    keep: torch.Tensor | None = None,
) -> torch.Tensor:
    """`reference.actgrad_reduce` for CPU tensors; a maximum is the same to the last bit.

    Args, returns and errors as there.
    """
    machine = compiled.machine(act, grad)
    if machine is None or cu_seqlens is not None or reduction not in REDUCTIONS:
        return cpu.actgrad_reduce(act, grad, lengths, reduction, padding, cu_seqlens=cu_seqlens, keep=keep)
    segments = check_actgrad(act, grad, lengths, reduction, padding, None, keep)
    act, grad = compiled.dense(act), compiled.dense(grad)
    samples, positions, columns = act.shape
    out = allocate.empty((samples, columns), torch.float32, act.device)
    bounds, marked = compiled.lengths(segments.bounds), None if keep is None else keep.to("cpu").contiguous()
    machine.actgrad_reduce(
        compiled.TYPES[act.dtype],
        reduction,
        padding == "zero",
        compiled.samples(act),
        compiled.samples(grad),
        bounds.data_ptr(),
        compiled.address(marked),
        out.data_ptr(),
        samples,
        positions,
        columns,
    )
    return out
