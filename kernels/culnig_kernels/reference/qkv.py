"""Backward of what lies between the joined projections q|k|v and the attention, piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from culnig_kernels import validate
from culnig_kernels.reference.rotary import check_rotary, rotary_backward
from culnig_kernels.reference.scores import actgrad_reduce
from culnig_kernels.validate import Segments


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
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradient of the projections' columns, of which q and k were normalised and rotated and v was passed on.

    Args:
        qkv: [S, T, Q + 2K] or packed [T, Q + 2K] what the projections put out; never overwritten.
        d_q: [S, T, Q] or [T, Q], gradient with respect to the rotated queries; None where qkv holds keys and
            values alone.
        d_k, d_v: [S, T, K] or [T, K], gradient with respect to the rotated keys and to the values.
        cos, sin, head_dim, eps, offset: as given to `rotary`.
        lengths: int32 or int64 [S] real tokens of each padded sample; needed for the score only.
        weight: [2, head_dim] of the queries' norm and of the keys'; None for models without.
        score: whether to score the columns.
        reduction: `max` or `sum` over a sample's positions.
        cu_seqlens: int32 or int64 [S+1] instead of lengths, for packed samples.

    Returns:
        the gradient of every row, padding included, of qkv's shape and dtype; float32 [S, Q + 2K] scores, or None.
        NaN in gives NaN out. Scores take gradients before they are rounded.

    Raises:
        ValueError: shapes disagree, an option is unknown, or a sample is empty (seen for CPU lengths only).
    """
    check_qkv_backward(qkv, d_q, d_k, d_v, cos, sin, head_dim, lengths, weight, score, reduction, cu_seqlens)
    bounds = {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}
    return by_parts(
        rotary_backward, actgrad_reduce, torch.empty_like(qkv), qkv, d_q, d_k, d_v, cos, sin, head_dim, lengths,
        weight=weight, score=score, reduction=reduction, eps=eps, offset=offset, **bounds,
    )  # fmt: skip


def by_parts(
    rotary_backward: Callable[..., Any],
    actgrad_reduce: Callable[..., torch.Tensor],
    out: torch.Tensor,
    qkv: torch.Tensor,
    d_q: torch.Tensor | None,
    d_k: torch.Tensor,
    d_v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    head_dim: int,
    lengths: torch.Tensor | None,
    *,
    weight: torch.Tensor | None,
    score: bool,
    reduction: str,
    eps: float,
    offset: float,
    **bounds: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`qkv_backward` of three calls of other operations, which write the gradient into `out`, of qkv's shape."""
    keys = d_k.shape[-1]
    scores = []
    start = 0
    for d, row in ((d_q, 0), (d_k, 1)):
        if d is None:
            continue
        columns = slice(start, start + d.shape[-1])
        own = None if weight is None else weight[row]
        _, found = rotary_backward(
            d, qkv[..., columns], cos, sin, head_dim, lengths,
            score=score, reduction=reduction, out=out[..., columns], weight=own, eps=eps, offset=offset, **bounds,
        )  # fmt: skip
        scores.append(found)
        start = columns.stop
    out[..., -keys:] = d_v
    if not score:
        return out, None
    scores.append(actgrad_reduce(qkv[..., -keys:], d_v, lengths, reduction, **bounds))
    return out, torch.cat(scores, dim=-1)


def check_qkv_backward(
    qkv: torch.Tensor,
    d_q: torch.Tensor | None,
    d_k: torch.Tensor,
    d_v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    head_dim: int,
    lengths: torch.Tensor | None,
    weight: torch.Tensor | None,
    score: bool,
    reduction: str,
    cu_seqlens: torch.Tensor | None,
) -> Segments | None:
    """The samples to score, None when nothing is; raise ValueError unless the arguments fit together."""
    queries = 0 if d_q is None else d_q.shape[-1]
    columns = queries + d_k.shape[-1] + d_v.shape[-1]
    if d_k.shape != d_v.shape or qkv.shape[-1:] != (columns,) or queries % head_dim or d_k.shape[-1] % head_dim:
        raise ValueError(
            f"qkv must hold the columns of d_q, d_k and d_v, whole heads of {head_dim}, not {list(qkv.shape)} beside "
            f"{None if d_q is None else list(d_q.shape)}, {list(d_k.shape)} and {list(d_v.shape)}"
        )
    validate.option("reduction", reduction, validate.FOLDED_REDUCTIONS)
    if d_q is not None:
        validate.shape("d_q", d_q, (*qkv.shape[:-1], queries))
    validate.shape("d_k", d_k, (*qkv.shape[:-1], d_k.shape[-1]))
    if weight is not None:
        validate.shape("weight", weight, (2, head_dim))
    check_rotary(qkv, cos, sin, head_dim, weight, queries // head_dim)
    return validate.segments("qkv", qkv, lengths, cu_seqlens) if score else None
