"""Backward of what lies between the joined projections q|k|v and the attention, with the scores of all three."""

from __future__ import annotations

import torch

from culnig_kernels import allocate, validate
from culnig_kernels.heads_backward import Heads, launch
from culnig_kernels.operators import fake_of, operator
from culnig_kernels.reference.qkv import check_qkv_backward


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

    One pass over what `rotary_backward` of q, that of k and `actgrad_reduce` of v would go through.

    Args:
        qkv: [S, T, Q + 2K] or packed [T, Q + 2K] what the projections put out; never overwritten.
        d_q: [S, T, Q] or [T, Q], gradient with respect to the rotated queries; any row stride, last dimension
            contiguous; None where qkv holds keys and values alone.
        d_k, d_v: [S, T, K] or [T, K], gradient with respect to the rotated keys and to the values.
        cos, sin, head_dim, eps, offset: as given to `rotary`.
        lengths: int32 or int64 [S] real tokens of each padded sample; needed for the score only.
        weight: [2, head_dim] of the queries' norm and of the keys'; None for models without.
        score: whether to score the columns.
        reduction: `max` or `sum` over a sample's positions.
        cu_seqlens: int32 or int64 [S+1] instead of lengths, for packed samples.

    Returns:
        the gradient of every row, padding included, contiguous, of qkv's shape and dtype; float32 [S, Q + 2K] scores,
        or None. NaN in gives NaN out. Scores take gradients before they are rounded.

    Raises:
        ValueError: shapes, dtypes, devices or strides do not fit, an option is unknown, or a sample is empty.
            Lengths on the device are not looked at: an empty sample gives -inf there.
    """
    options = (lengths, weight, score, reduction, cu_seqlens)
    segments = check_qkv_backward(qkv, d_q, d_k, d_v, cos, sin, head_dim, *options)
    validate.launchable(d_q=d_q, d_k=d_k, d_v=d_v, qkv=qkv, cos=cos, sin=sin, weight=weight)
    bounds = None if segments is None else segments.bounds.to(qkv.device, non_blocking=True)
    gradient, scores = qkv_backward_op(qkv, d_q, d_k, d_v, cos, sin, weight, bounds, head_dim, eps, offset, reduction)
    return gradient, scores if score else None


@operator()
def qkv_backward_op(
    qkv: torch.Tensor,
    d_q: torch.Tensor | None,
    d_k: torch.Tensor,
    d_v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    weight: torch.Tensor | None,
    bounds: torch.Tensor | None,
    head_dim: int,
    eps: float,
    offset: float,
    reduction: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The launch, on arguments that `qkv_backward` has checked; scores come back empty without bounds."""
    gradient = allocate.empty(qkv.shape, qkv.dtype, qkv.device)
    queries = 0 if d_q is None else d_q.shape[-1] // head_dim
    heads = Heads(head_dim, queries, queries + d_k.shape[-1] // head_dim)
    gradients = (d_k if d_q is None else d_q, d_k, d_v)
    return gradient, launch(gradients, qkv, cos, sin, weight, bounds, gradient, heads, eps, offset, reduction)


@fake_of(qkv_backward_op)
def _(
    qkv: torch.Tensor,
    d_q: torch.Tensor | None,
    d_k: torch.Tensor,
    d_v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    weight: torch.Tensor | None,
    bounds: torch.Tensor | None,
    head_dim: int,
    eps: float,
    offset: float,
    reduction: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    samples = 0 if bounds is None else bounds.shape[0] - (qkv.dim() == 2)
    return qkv.new_empty(qkv.shape), qkv.new_empty((samples, qkv.shape[-1]), dtype=torch.float32)
