"""The kernel of the heads' backward: rotation and norm undone, ending in the score of the columns they took."""

# Kernels take pointers and numbers that Triton types at launch.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from culnig_kernels import allocate
from culnig_kernels.rotary import (
    BLOCK_T,
    WARPS,
    head_rstd,
    head_split,
    load_head,
    load_vector,
    store_head,
    table_strides,
)
from culnig_kernels.running import finish, fold, start, visited_rows
from culnig_kernels.splitting import chunks, merged, split


@triton.jit
def norm_backward(low, high, tail, x_low, x_high, x_tail, width, eps):
    """The gradient of x, a head in three parts, from that of x / rms(x)."""
    rstd = head_rstd(x_low, x_high, x_tail, width, eps)
    along = tl.sum(low * x_low, 1) + tl.sum(high * x_high, 1) + tl.sum(tail * x_tail, 1)
    along = (along / width)[:, None] * rstd * rstd
    return rstd * (low - x_low * along), rstd * (high - x_high * along), rstd * (tail - x_tail * along)


@triton.jit
def turned_back(low, high, cos_ptr, sin_ptr, at, cos_row_stride, sin_row_stride, half, HALF: tl.constexpr, keep):
    """The gradient of a head's halves before the rotation, from that after it."""
    cos_low, cos_high, _ = load_head(cos_ptr, at, cos_row_stride, 0, half, 0, HALF, 1, keep)
    sin_low, sin_high, _ = load_head(sin_ptr, at, sin_row_stride, 0, half, 0, HALF, 1, keep)
    return low * cos_low + high * sin_high, high * cos_high - low * sin_low


@triton.jit
def store_scores(ptr, low, high, tail, half, rest, HALF: tl.constexpr, REST: tl.constexpr, MAXIMUM: tl.constexpr):
    """A head's reduced scores, from the running tiles of its three parts."""
    cols, more = tl.arange(0, HALF), tl.arange(0, REST)
    tl.store(ptr + cols, finish(low, MAXIMUM), mask=cols < half)
    tl.store(ptr + half + cols, finish(high, MAXIMUM), mask=cols < half)
    tl.store(ptr + 2 * half + more, finish(tail, MAXIMUM), mask=more < rest)


@triton.jit(do_not_specialize=["samples", "rows", "parts", "part_rows", "heads", "queries", "turned"])
def rotary_backward_kernel(
    d_q_ptr,  # [S, T, queries · (2 half + rest)]
    d_k_ptr,  # [S, T, (turned - queries) · (2 half + rest)]
    d_v_ptr,  # [S, T, (heads - turned) · (2 half + rest)]
    x_ptr,  # [S, T, heads · (2 half + rest)]
    cos_ptr,  # [T, 2 half] or [S, T, 2 half]
    sin_ptr,  # as cos
    weight_ptr,  # [2, 2 half + rest], when NORM; one row will do where all heads are queries
    bounds_ptr,  # [S], or [S+1] when PACKED; unused when nothing is scored
    dx_ptr,  # as x
    score_ptr,  # [S · parts, heads · (2 half + rest)] float32, when SCORE
    samples,  # S
    rows,  # T
    parts,  # of a sample's rows
    part_rows,
    heads,
    queries,  # heads, the first ones, whose gradient is in d_q
    turned,  # heads, the first ones, that were normalised and rotated; the others' gradient is in d_v
    half,
    rest,
    d_q_sample_stride,
    d_q_row_stride,
    d_k_sample_stride,
    d_k_row_stride,
    d_v_sample_stride,
    d_v_row_stride,
    x_sample_stride,
    x_row_stride,
    cos_sample_stride,
    cos_row_stride,
    sin_sample_stride,
    sin_row_stride,
    dx_sample_stride,
    dx_row_stride,
    eps,
    offset,
    NORM: tl.constexpr,
    SCORE: tl.constexpr,
    PACKED: tl.constexpr,
    MAXIMUM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    head = tl.program_id(0) % heads
    index = tl.program_id(0) // heads
    sample, first, end, write_first, write_end = visited_rows(
        bounds_ptr, index, samples, rows, parts, part_rows, SCORE, PACKED
    )
    width = 2 * half + rest
    # Packed rows and tables have sample stride 0.
    if head < queries:
        d_out_ptr = d_q_ptr + sample * d_q_sample_stride + head * width
        d_out_row_stride = d_q_row_stride
    elif head < turned:
        d_out_ptr = d_k_ptr + sample * d_k_sample_stride + (head - queries) * width
        d_out_row_stride = d_k_row_stride
    else:
        d_out_ptr = d_v_ptr + sample * d_v_sample_stride + (head - turned) * width
        d_out_row_stride = d_v_row_stride
    x_ptr += sample * x_sample_stride
    cos_ptr += sample * cos_sample_stride
    sin_ptr += sample * sin_sample_stride
    dx_ptr += sample * dx_sample_stride
    if NORM:
        weight_ptr += (head >= queries).to(tl.int32) * width
        w_low, w_high, w_tail = load_vector(weight_ptr, half, rest, HALF, REST)
        w_low, w_high, w_tail = offset + w_low, offset + w_high, offset + w_tail
    best_low = start(BLOCK_T, HALF, MAXIMUM)
    best_high = start(BLOCK_T, HALF, MAXIMUM)
    best_tail = start(BLOCK_T, REST, MAXIMUM)
    for row in range(write_first, write_end, BLOCK_T):
        at = (row + tl.arange(0, BLOCK_T)).to(tl.int64)
        inside = at < write_end
        keep = (at >= first) & (at < end)
        low, high, tail = load_head(d_out_ptr, at, d_out_row_stride, 0, half, rest, HALF, REST, inside)
        if NORM or SCORE:
            x_low, x_high, x_tail = load_head(x_ptr, at, x_row_stride, head, half, rest, HALF, REST, inside)
        if head < turned:
            low, high = turned_back(low, high, cos_ptr, sin_ptr, at, cos_row_stride, sin_row_stride, half, HALF, inside)
            if NORM:
                low *= w_low[None, :]
                high *= w_high[None, :]
                tail *= w_tail[None, :]
                low, high, tail = norm_backward(low, high, tail, x_low, x_high, x_tail, width, eps)
        store_head(dx_ptr, at, dx_row_stride, head, half, rest, low, high, tail, HALF, REST, inside)
        if SCORE:
            best_low = fold(best_low, x_low * low, keep, MAXIMUM)
            best_high = fold(best_high, x_high * high, keep, MAXIMUM)
            best_tail = fold(best_tail, x_tail * tail, keep, MAXIMUM)
    if SCORE:
        score_ptr += (index.to(tl.int64) * heads + head) * width
        store_scores(score_ptr, best_low, best_high, best_tail, half, rest, HALF, REST, MAXIMUM)


class Heads(NamedTuple):
    """What the heads of one tensor are: queries first, keys next, values last.

    Attributes:
        dim: columns of one.
        queries: how many are queries.
        turned: how many are queries or keys, and so were normalised and rotated.
    """

    dim: int
    queries: int
    turned: int


def launch(
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    weight: torch.Tensor | None,
    bounds: torch.Tensor | None,
    dx: torch.Tensor,
    heads: Heads,
    eps: float,
    offset: float,
    reduction: str,
) -> torch.Tensor:
    """Queue the kernel.

    Args:
        gradients: with respect to the queries, keys and values; where there are none of a kind, any tensor.
        x: the heads before norm and rotation.
        cos, sin: the angles.
        weight: of the heads' norm, [head_dim], or [2, head_dim] for queries and for keys.
        bounds: of the samples; None scores nothing.
        dx: of x's shape, written to.
        heads: what they are.
        eps, offset, reduction: see `rotary_backward`.

    Returns:
        float32 [S, columns of x] scores, empty without bounds.
    """
    rows, columns = x.shape[-2:]
    padded = x.dim() == 3
    samples = (x.shape[0] if padded else 1) if bounds is None else len(bounds) - (not padded)
    count = columns // heads.dim
    parts = chunks(rows) if bounds is None else split(samples * count, rows)
    scores = allocate.empty((0 if bounds is None else samples * parts.parts, columns), torch.float32, x.device)
    if x.numel() == 0:
        return scores
    d_q, d_k, d_v = gradients
    with torch.cuda.device_of(x):
        rotary_backward_kernel[(samples * parts.parts * count,)](
            d_q_ptr=d_q,
            d_k_ptr=d_k,
            d_v_ptr=d_v,
            x_ptr=x,
            cos_ptr=cos,
            sin_ptr=sin,
            weight_ptr=None if weight is None else weight.contiguous(),
            bounds_ptr=None if bounds is None else bounds.contiguous(),
            dx_ptr=dx,
            score_ptr=scores,
            samples=samples,
            rows=rows,
            parts=parts.parts,
            part_rows=parts.rows,
            heads=count,
            queries=heads.queries,
            turned=heads.turned,
            d_q_sample_stride=d_q.stride(0) if padded else 0,
            d_q_row_stride=d_q.stride(-2),
            d_k_sample_stride=d_k.stride(0) if padded else 0,
            d_k_row_stride=d_k.stride(-2),
            d_v_sample_stride=d_v.stride(0) if padded else 0,
            d_v_row_stride=d_v.stride(-2),
            x_sample_stride=x.stride(0) if padded else 0,
            x_row_stride=x.stride(-2),
            cos_sample_stride=table_strides(cos)[0],
            cos_row_stride=table_strides(cos)[1],
            sin_sample_stride=table_strides(sin)[0],
            sin_row_stride=table_strides(sin)[1],
            dx_sample_stride=dx.stride(0) if padded else 0,
            dx_row_stride=dx.stride(-2),
            eps=eps,
            offset=offset,
            NORM=weight is not None,
            SCORE=bounds is not None,
            PACKED=not padded,
            MAXIMUM=reduction == "max",
            BLOCK_T=BLOCK_T,
            num_warps=WARPS,
            **head_split(heads.dim, cos.shape[-1]),
        )
    return scores if bounds is None else merged(scores, parts.parts, reduction)
