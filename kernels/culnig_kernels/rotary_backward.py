"""Backward of the rotary embedding of one projection and of the norm before it, with the scores of its columns."""

from __future__ import annotations

import torch

from culnig_kernels import allocate, validate
from culnig_kernels.heads_backward import Heads, launch
from culnig_kernels.operators import fake_of, operator
from culnig_kernels.reference.rotary import check_rotary_backward


def rotary_backward(
    d_out: torch.Tensor,
    x: torch.Tensor,
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
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradient of `rotary` with respect to x and, for each sample, x × gradient reduced over its positions.

    Args:
        d_out: of x's shape, gradient with respect to what `rotary` returned; any row stride, last dimension
            contiguous.
        x: what was given to `rotary`; never overwritten.
        cos, sin, head_dim, weight, eps, offset: as given to `rotary`.
        lengths: int32 or int64 [S] real tokens of each padded sample; needed for the score only.
        score: whether to score x's columns (before norm and rotation).
        reduction: `max` or `sum` over a sample's positions.
        cu_seqlens: int32 or int64 [S+1] instead of lengths, for packed samples.
        out: of x's shape, receives the gradient, e.g. the q columns of the fused projection's gradient.

    Returns:
        the gradient of every row, padding included, of x's shape and dtype (`out` if given); float32 [S,
        heads·head_dim] scores, or None. NaN in gives NaN out. Scores take gradients before they are rounded.

    Raises:
        ValueError: shapes, dtypes, devices or strides do not fit, an option is unknown, or a sample is empty.
            Lengths on the device are not looked at: an empty sample gives -inf there.
    """
    segments = check_rotary_backward(d_out, x, cos, sin, head_dim, lengths, weight, score, reduction, cu_seqlens, out)
    validate.launchable(d_out=d_out, x=x, cos=cos, sin=sin, weight=weight, out=out)
    dx = allocate.empty(x.shape, x.dtype, x.device) if out is None else out
    bounds = None if segments is None else segments.bounds.to(x.device, non_blocking=True)
    scores = rotary_backward_op(d_out, x, cos, sin, weight, bounds, dx, head_dim, eps, offset, reduction)
    return dx, scores if score else None


@operator(mutates=("dx",))
def rotary_backward_op(
    d_out: torch.Tensor,
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    weight: torch.Tensor | None,
    bounds: torch.Tensor | None,
    dx: torch.Tensor,
    head_dim: int,
    eps: float,
    offset: float,
    reduction: str,
) -> torch.Tensor:
    """The launch, on arguments that `rotary_backward` has checked; scores come back empty without bounds."""
    every = x.shape[-1] // head_dim
    heads = Heads(head_dim, queries=every, turned=every)
    return launch((d_out, d_out, d_out), x, cos, sin, weight, bounds, dx, heads, eps, offset, reduction)


@fake_of(rotary_backward_op)
def _(
    d_out: torch.Tensor,
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    weight: torch.Tensor | None,
    bounds: torch.Tensor | None,
    dx: torch.Tensor,
    head_dim: int,
    eps: float,
    offset: float,
    reduction: str,
) -> torch.Tensor:
    samples = 0 if bounds is None else bounds.shape[0] - (x.dim() == 2)
    return x.new_empty((samples, x.shape[-1]), dtype=torch.float32)
