"""Rotary embedding of the heads of q or k, after the heads' RMS norm where a model has one."""

# Kernels take pointers and numbers that Triton types at launch.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl

from culnig_kernels import allocate, validate
from culnig_kernels.operators import fake_of, operator
from culnig_kernels.reference.rotary import check_rotary
from culnig_kernels.whole import cdiv, next_power_of_2

BLOCK_T = 16
WARPS = 4
HEADS = 8
"""Heads of a program of the forward, for which it loads the angles once. With all heads in one, a batch of 8,192 tokens
would have four programs a multiprocessor, each waiting for one head at a time."""


@triton.jit
def load_head(ptr, at, row_stride, head, half, rest, H: tl.constexpr, R: tl.constexpr, keep):
    """A head's rotated halves [BLOCK_T, H] and the columns after them [BLOCK_T, R]; float32, 0 outside."""
    cols = tl.arange(0, H)
    mask = keep[:, None] & (cols < half)[None, :]
    ptr += at[:, None] * row_stride + head * (2 * half + rest)
    low = tl.load(ptr + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    high = tl.load(ptr + half + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    more = tl.arange(0, R)
    tail = tl.load(ptr + 2 * half + more[None, :], mask=keep[:, None] & (more < rest)[None, :], other=0.0)
    return low, high, tail.to(tl.float32)


@triton.jit
def store_head(ptr, at, row_stride, head, half, rest, low, high, tail, H: tl.constexpr, R: tl.constexpr, keep):
    """What `load_head` loads, rounded to the pointer's type."""
    cols = tl.arange(0, H)
    mask = keep[:, None] & (cols < half)[None, :]
    kind = ptr.dtype.element_ty
    ptr += at[:, None] * row_stride + head * (2 * half + rest)
    tl.store(ptr + cols[None, :], low.to(kind), mask=mask)
    tl.store(ptr + half + cols[None, :], high.to(kind), mask=mask)
    more = tl.arange(0, R)
    tl.store(ptr + 2 * half + more[None, :], tail.to(kind), mask=keep[:, None] & (more < rest)[None, :])


@triton.jit
def load_vector(ptr, half, rest, H: tl.constexpr, R: tl.constexpr):
    """The norm's weight, [H], [H] and [R], split like a head."""
    cols = tl.arange(0, H)
    more = tl.arange(0, R)
    low = tl.load(ptr + cols, mask=cols < half, other=0.0).to(tl.float32)
    high = tl.load(ptr + half + cols, mask=cols < half, other=0.0).to(tl.float32)
    tail = tl.load(ptr + 2 * half + more, mask=more < rest, other=0.0).to(tl.float32)
    return low, high, tail


@triton.jit
def head_rstd(low, high, tail, width, eps):
    """[BLOCK_T, 1] reciprocal root mean squares of heads of `width` columns."""
    square = tl.sum(low * low, 1) + tl.sum(high * high, 1) + tl.sum(tail * tail, 1)
    return (1.0 / tl.sqrt_rn(square / width + eps))[:, None]


@triton.jit(do_not_specialize=["rows", "heads", "queries"])
def rotary_kernel(
    x_ptr,  # [S, T, heads · (2 half + rest)]
    cos_ptr,  # [T, 2 half] or [S, T, 2 half]
    sin_ptr,  # as cos
    weight_ptr,  # [2, 2 half + rest], when NORM; one row will do where all heads are queries
    out_ptr,  # contiguous, x's shape
    rows,  # T
    heads,
    queries,  # heads whose norm has the first row of the weight
    half,
    rest,
    x_sample_stride,
    x_row_stride,
    cos_sample_stride,
    cos_row_stride,
    sin_sample_stride,
    sin_row_stride,
    eps,
    offset,
    NORM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    # Neighbouring programs take the same tokens: what one loads of the angles the others find in the cache.
    groups = tl.cdiv(heads, HEADS)
    first = (tl.program_id(0) % groups) * HEADS
    index = tl.program_id(0) // groups
    blocks = tl.cdiv(rows, BLOCK_T)
    sample = (index // blocks).to(tl.int64)
    at = ((index % blocks) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    keep = at < rows
    width = 2 * half + rest
    cos_low, cos_high, _ = load_head(
        cos_ptr + sample * cos_sample_stride, at, cos_row_stride, 0, half, 0, HALF, 1, keep
    )
    sin_low, sin_high, _ = load_head(
        sin_ptr + sample * sin_sample_stride, at, sin_row_stride, 0, half, 0, HALF, 1, keep
    )
    x_ptr += sample * x_sample_stride
    out_ptr += sample * rows * heads * width
    for head in range(first, tl.minimum(first + HEADS, heads)):
        low, high, tail = load_head(x_ptr, at, x_row_stride, head, half, rest, HALF, REST, keep)
        if NORM:
            rstd = head_rstd(low, high, tail, width, eps)
            own_ptr = weight_ptr + (head >= queries).to(tl.int32) * width
            w_low, w_high, w_tail = load_vector(own_ptr, half, rest, HALF, REST)
            low *= rstd * (offset + w_low)[None, :]
            high *= rstd * (offset + w_high)[None, :]
            tail *= rstd * (offset + w_tail)[None, :]
        turned_low = low * cos_low - high * sin_low
        turned_high = high * cos_high + low * sin_high
        store_head(out_ptr, at, heads * width, head, half, rest, turned_low, turned_high, tail, HALF, REST, keep)


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
        x: [S, T, heads·head_dim] or packed [T, heads·head_dim], e.g. the q columns of a fused projection; bf16, fp16
            or fp32, any row stride, last dimension contiguous.
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
        ValueError: shapes, dtypes, devices or strides do not fit.
    """
    check_rotary(x, cos, sin, head_dim, weight, queries)
    validate.launchable(x=x, cos=cos, sin=sin, weight=weight)
    return rotary_op(x, cos, sin, weight, head_dim, eps, offset, queries)


def table_strides(table: torch.Tensor) -> tuple[int, int]:
    """(sample stride, row stride) of cos or sin; a table that all samples share has sample stride 0."""
    return (table.stride(0) if table.dim() == 3 and table.shape[0] > 1 else 0), table.stride(-2)


def first_rows(weight: torch.Tensor | None, queries: int, heads: int) -> int:
    """How many heads, the first ones, a norm's weight gives its first row."""
    return queries if weight is not None and weight.dim() == 2 else heads


def head_split(head_dim: int, rotated: int) -> dict[str, int]:
    """How a head is cut: `half` and `rest` columns, and the powers of two that hold them."""
    half, rest = rotated // 2, head_dim - rotated
    return {
        "half": half,
        "rest": rest,
        "HALF": next_power_of_2(half),
        "REST": next_power_of_2(max(rest, 1)),
    }


@operator()
def rotary_op(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    weight: torch.Tensor | None,
    head_dim: int,
    eps: float,
    offset: float,
    queries: int,
) -> torch.Tensor:
    """The launch, on arguments that `rotary` has checked."""
    out = allocate.empty(x.shape, x.dtype, x.device)
    if x.numel() == 0:
        return out
    samples, rows, heads = (x.shape[0] if x.dim() == 3 else 1), x.shape[-2], x.shape[-1] // head_dim
    with torch.cuda.device_of(x):
        rotary_kernel[(samples * cdiv(rows, BLOCK_T) * cdiv(heads, HEADS),)](
            x_ptr=x,
            cos_ptr=cos,
            sin_ptr=sin,
            weight_ptr=None if weight is None else weight.contiguous(),
            out_ptr=out,
            rows=rows,
            heads=heads,
            queries=first_rows(weight, queries, heads),
            x_sample_stride=x.stride(0) if x.dim() == 3 else 0,
            x_row_stride=x.stride(-2),
            cos_sample_stride=table_strides(cos)[0],
            cos_row_stride=table_strides(cos)[1],
            sin_sample_stride=table_strides(sin)[0],
            sin_row_stride=table_strides(sin)[1],
            eps=eps,
            offset=offset,
            NORM=weight is not None,
            BLOCK_T=BLOCK_T,
            HEADS=HEADS,
            num_warps=WARPS,
            **head_split(head_dim, cos.shape[-1]),
        )
    return out


@fake_of(rotary_op)
def _(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    weight: torch.Tensor | None,
    head_dim: int,
    eps: float,
    offset: float,
    queries: int,
) -> torch.Tensor:
    return x.new_empty(x.shape)
