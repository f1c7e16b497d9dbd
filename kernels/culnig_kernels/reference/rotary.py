"""Rotary embedding of one projection's heads, with the norm that some models put before it."""

from __future__ import annotations

import torch

from culnig_kernels import validate
from culnig_kernels.reference.norm import normalise, normalise_backward
from culnig_kernels.reference.precision import work_dtype
from culnig_kernels.reference.scores import reduce_positions
from culnig_kernels.validate import Segments


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
    """Rotate each head by its position, after an RMS norm of the head where a weight is given.

    The layout is Hugging Face's: out = n·cos + rotate_half(n)·sin over the first R columns of a head, n the
    normalised head; the columns from R on pass as they are.

    Args:
        x: [S, T, heads·head_dim] or packed [T, heads·head_dim], e.g. the q columns of a fused projection.
        cos: [T, R] or, beside a padded x, also [S, T, R] or [1, T, R]; R even, at most head_dim.
        sin: of cos's shape.
        head_dim: columns of a head.
        weight: [head_dim] of the norm, or [2, head_dim] where x holds queries and keys; None for models without one.
        eps: of the norm.
        offset: added to the weight (0 Qwen3, 1 Gemma 3).
        queries: heads, the first ones, that a weight of two rows gives its first; the others have the second.

    Returns:
        contiguous, of x's shape and dtype, computed in float32 and rounded once.

    Raises:
        ValueError: shapes disagree.
    """
    check_rotary(x, cos, sin, head_dim, weight, queries)
    work = work_dtype(x, cos)
    heads = x.to(work).unflatten(-1, (-1, head_dim))
    if weight is not None:
        own = weight if weight.dim() == 1 else torch.stack([weight[int(h >= queries)] for h in range(heads.shape[-2])])
        heads, _ = normalise(heads, own.to(work), eps, offset)
    return rotate(heads, cos.to(work), sin.to(work)).flatten(-2).to(x.dtype)


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
        d_out: of x's shape, gradient with respect to what `rotary` returned.
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
        ValueError: shapes disagree, an option is unknown, or a sample is empty (seen for CPU lengths only).
    """
    segments = check_rotary_backward(d_out, x, cos, sin, head_dim, lengths, weight, score, reduction, cu_seqlens, out)
    work = work_dtype(d_out, x, cos)
    heads = x.to(work).unflatten(-1, (-1, head_dim))
    gradient = rotate_back(d_out.to(work).unflatten(-1, (-1, head_dim)), cos.to(work), sin.to(work))
    if weight is not None:
        _, rstd = normalise(heads, weight.to(work), eps, offset)
        gradient = normalise_backward(gradient, heads, weight.to(work), rstd, offset)
    scores = reduce_positions((heads * gradient).flatten(-2), segments, reduction) if segments else None
    dx = gradient.flatten(-2).to(x.dtype)
    return (dx if out is None else out.copy_(dx)), scores


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[..., T, heads, head_dim] rotated, in its own dtype."""
    turned, rest = heads.split([cos.shape[-1], heads.shape[-1] - cos.shape[-1]], dim=-1)
    low, high = turned.chunk(2, dim=-1)
    turned = turned * cos[..., None, :] + torch.cat([-high, low], dim=-1) * sin[..., None, :]
    return torch.cat([turned, rest], dim=-1)


def rotate_back(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The transpose of `rotate`."""
    turned, rest = heads.split([cos.shape[-1], heads.shape[-1] - cos.shape[-1]], dim=-1)
    low, high = (turned * sin[..., None, :]).chunk(2, dim=-1)
    turned = turned * cos[..., None, :] + torch.cat([high, -low], dim=-1)
    return torch.cat([turned, rest], dim=-1)


def check_rotary(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    head_dim: int,
    weight: torch.Tensor | None,
    queries: int | None = None,
) -> None:
    """Raise ValueError, naming the argument, unless `rotary` can take the arguments."""
    if x.dim() not in (2, 3) or head_dim < 1 or x.shape[-1] % head_dim:
        raise ValueError(f"x must be [S, T, heads·{head_dim}] or [T, heads·{head_dim}], not {list(x.shape)}")
    rotated = cos.shape[-1] if cos.dim() else 0
    if rotated % 2 or not 0 < rotated <= head_dim:
        raise ValueError(f"cos must have an even number of columns up to head_dim {head_dim}, not {rotated}")
    tokens = x.shape[-2]
    shapes = [(tokens, rotated)] + [(n, tokens, rotated) for n in {1, x.shape[0]} if x.dim() == 3]
    if tuple(cos.shape) not in shapes:
        raise ValueError(f"cos must be [{tokens}, R] or one such table a sample, not {list(cos.shape)}")
    validate.shape("sin", sin, tuple(cos.shape))
    if weight is None:
        return
    if queries is None or weight.dim() == 1:
        validate.shape("weight", weight, (head_dim,))
        return
    validate.shape("weight", weight, (2, head_dim))
    if not 0 <= queries <= x.shape[-1] // head_dim:
        raise ValueError(f"queries must lie in 0…{x.shape[-1] // head_dim}, the heads of x, not {queries}")


def check_rotary_backward(
    d_out: torch.Tensor,
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    head_dim: int,
    lengths: torch.Tensor | None,
    weight: torch.Tensor | None,
    score: bool,
    reduction: str,
    cu_seqlens: torch.Tensor | None,
    out: torch.Tensor | None,
) -> Segments | None:
    """The samples to score, None when nothing is; raise ValueError unless the arguments fit together."""
    check_rotary(x, cos, sin, head_dim, weight)
    validate.option("reduction", reduction, validate.FOLDED_REDUCTIONS)
    validate.shape("d_out", d_out, tuple(x.shape))
    if out is not None:
        validate.shape("out", out, tuple(x.shape))
    return validate.segments("x", x, lengths, cu_seqlens) if score else None
