"""What is done to heads: norm and rotation, and their backward with the scores."""

from __future__ import annotations

from typing import Any

import torch

from culnig_kernels import allocate, compiled, cpu
from culnig_kernels.native.scores import actgrad_reduce
from culnig_kernels.reference.qkv import by_parts, check_qkv_backward
from culnig_kernels.reference.rotary import check_rotary, check_rotary_backward


@torch.no_grad()
def rotary(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    head_dim: int,
    *,
    weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
    queries: int = 0,
) -> torch.Tensor:
    """`reference.rotary` for right-padded CPU tensors [S, T, heads·head_dim].

    Args, returns and errors as there.
    """
    machine = _machine_for_heads(x, cos, head_dim, weight)
    if machine is None:
        return cpu.rotary(x, cos, sin, head_dim, queries=queries, **_norm(weight, eps, offset))
    check_rotary(x, cos, sin, head_dim, weight, queries)
    x, angles = compiled.dense(x), _Angles(cos, sin)
    out = allocate.empty(x.shape, x.dtype, x.device)
    first = queries * head_dim if weight is not None and weight.dim() == 2 else x.shape[-1]
    for row, columns in enumerate((slice(0, first), slice(first, None))):
        part, into = x[..., columns], out[..., columns]
        if part.shape[-1] == 0:
            continue
        own = weight if weight is None or weight.dim() == 1 else weight[row]
        scale = None if own is None else compiled.scale(own, offset)
        machine.rotary(
            compiled.TYPES[x.dtype],
            compiled.samples(part),
            compiled.samples(into),
            *angles.at,
            compiled.address(scale),
            eps,
            *_heads(part, head_dim),
        )
    return out


@torch.no_grad()
def rotary_backward(
    d_out: torch.Tensor,
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    head_dim: int,
    lengths: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
    score: bool = False,
    reduction: str = "max",
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`reference.rotary_backward` for right-padded CPU tensors.

    Args, returns and errors as there.
    """
    machine = _machine_for_heads(x, cos, head_dim, weight, d_out, out)
    if machine is None or (out is not None and out.stride(-1) != 1):
        return cpu.rotary_backward(
            d_out, x, cos, sin, head_dim, lengths, score=score, reduction=reduction, out=out,
            **_norm(weight, eps, offset),
        )  # fmt: skip
    check_rotary_backward(d_out, x, cos, sin, head_dim, lengths, weight, score, reduction, None, out)
    d_out, x, angles = compiled.dense(d_out), compiled.dense(x), _Angles(cos, sin)
    scale = None if weight is None else compiled.scale(weight, offset)
    into = allocate.empty(x.shape, x.dtype, x.device) if out is None else out
    scores = allocate.empty((x.shape[0], x.shape[-1]), torch.float32, x.device) if score else None
    bounds = compiled.lengths(lengths) if score else None
    machine.rotary_backward(
        compiled.TYPES[x.dtype],
        reduction,
        compiled.samples(d_out),
        compiled.samples(x),
        compiled.samples(into),
        *angles.at,
        compiled.address(scale),
        eps,
        compiled.address(bounds),
        compiled.address(scores),
        *_heads(x, head_dim),
    )
    return into, scores


@torch.no_grad()
def qkv_backward(
    qkv: torch.Tensor,
    d_q: torch.Tensor | None,
    d_k: torch.Tensor,
    d_v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    head_dim: int,
    lengths: torch.Tensor | None = None,
    *,
    weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
    score: bool = False,
    reduction: str = "max",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`reference.qkv_backward` for right-padded CPU tensors.

    Args, returns and errors as there.
    """
    check_qkv_backward(qkv, d_q, d_k, d_v, cos, sin, head_dim, lengths, weight, score, reduction, None)
    out = allocate.empty(qkv.shape, qkv.dtype, qkv.device)
    return by_parts(
        rotary_backward, actgrad_reduce, out, qkv, d_q, d_k, d_v, cos, sin, head_dim, lengths,
        weight=weight, score=score, reduction=reduction, eps=eps, offset=offset,
    )  # fmt: skip


class _Angles:
    """Tables of cos and sin in float32, kept alive for the call.

    Attributes:
        at: addresses, elements between two samples' tables (0: one for all), columns.
    """

    def __init__(self, cos: torch.Tensor, sin: torch.Tensor) -> None:
        self._tables = [table.to(torch.float32).contiguous() for table in (cos, sin)]
        own = cos.dim() == 3 and cos.shape[0] > 1
        between = cos.shape[-2] * cos.shape[-1] if own else 0
        self.at = (*(table.data_ptr() for table in self._tables), between, cos.shape[-1])


def _machine_for_heads(
    x: torch.Tensor, cos: torch.Tensor, head_dim: int, weight: torch.Tensor | None, *others: torch.Tensor | None
) -> Any:
    """`compiled.machine`, for samples of heads that the kernels take."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in (cos, weight))
    machine = None if x.dim() != 3 or wide else compiled.machine(x, *others)
    return machine if machine is not None and 0 < head_dim <= compiled.extension().most_head_dim else None


def _norm(weight: torch.Tensor | None, eps: float, offset: float) -> dict[str, Any]:
    return {"weight": weight, "eps": eps, "offset": offset}


def _heads(x: torch.Tensor, head_dim: int) -> tuple[int, int, int, int]:
    samples, positions, columns = x.shape
    return samples, positions, columns // head_dim, head_dim
