"""Activation × gradient, reduced over each sample's positions in one read of both."""

# Kernels take pointers and numbers that Triton types at launch.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from culnig_kernels import allocate, reference, validate
from culnig_kernels.operators import fake_of, operator
from culnig_kernels.reference.scores import check_actgrad, counted_positions, last_counted
from culnig_kernels.running import finish, fold, scored_rows, start
from culnig_kernels.splitting import ENOUGH_PROGRAMS, Split, merged, split
from culnig_kernels.whole import cdiv


class Tile(NamedTuple):
    """Rows and columns that a program holds at once, and its warps."""

    rows: int
    columns: int
    warps: int


WIDE = Tile(rows=16, columns=256, warps=4)
NARROW = Tile(rows=64, columns=64, warps=4)
TILES = (WIDE, NARROW)
"""Every tile that is launched: 32 elements a thread, so that a 16-bit input is read 16 bytes at a time."""


@triton.jit(do_not_specialize=["rows", "parts", "part_rows"])
def actgrad_kernel(
    act_ptr,  # [S, T, K] or packed [T, K]
    grad_ptr,  # as act
    bounds_ptr,  # [S], or [S+1] when PACKED
    keep_ptr,  # bytes [S, T] or packed [T] when MASKED
    out_ptr,  # [S · parts, K] float32
    rows,  # T
    parts,  # of a sample's rows
    part_rows,
    columns,  # K
    act_sample_stride,
    act_row_stride,
    grad_sample_stride,
    grad_row_stride,
    PACKED: tl.constexpr,
    MASKED: tl.constexpr,
    MAXIMUM: tl.constexpr,
    ABSOLUTE: tl.constexpr,
    MEAN: tl.constexpr,
    PADS_COUNT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Neighbouring programs read neighbouring columns of the same rows.
    blocks = tl.cdiv(columns, BLOCK_K)
    index = (tl.program_id(0) // blocks).to(tl.int64)
    sample = index // parts
    cols = (tl.program_id(0) % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = cols < columns
    first, end = scored_rows(bounds_ptr, sample, rows, PACKED)
    padded = end < rows
    first += (index % parts).to(tl.int32) * part_rows
    end = tl.minimum(end, first + part_rows)
    act_ptr += sample * act_sample_stride
    grad_ptr += sample * grad_sample_stride

    running = start(BLOCK_T, BLOCK_K, MAXIMUM)
    counted = tl.zeros([BLOCK_T], tl.int32)
    for row in range(first, end, BLOCK_T):
        at = row + tl.arange(0, BLOCK_T)
        keep = at < end
        if MASKED:
            own = 0 if PACKED else sample * rows
            keep = keep & (tl.load(keep_ptr + own + at.to(tl.int64), mask=keep, other=0) != 0)
        if MEAN:
            counted += keep.to(tl.int32)
        mask = keep[:, None] & inside[None, :]
        at = at.to(tl.int64)[:, None]
        act = tl.load(act_ptr + at * act_row_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + at * grad_row_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        product = act * grad
        if ABSOLUTE:
            product = tl.abs(product)
        running = fold(running, product, keep, MAXIMUM)
    result = finish(running, MAXIMUM)
    if MEAN:
        result = result / tl.sum(counted, 0).to(tl.float32)
    if PADS_COUNT and MAXIMUM and not PACKED:
        result = tl.where(padded, tl.maximum(result, 0.0, propagate_nan=tl.PropagateNan.ALL), result)
    tl.store(out_ptr + index * columns + cols, result, mask=inside)


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
    """Activation × gradient of each sample, reduced over its token positions.

    Args:
        act: [S, T, K] right-padded or [T, K] packed; bf16, fp16 or fp32, any row stride, last dimension contiguous.
        grad: of act's shape, of any of these dtypes.
        lengths: int32 or int64 [S] real tokens of each padded sample, in 1…T; the rest of a row is padding.
        reduction: `max` (CULNIG, section 2), `sum` (first-order effect of zeroing the neuron everywhere), `mean`,
            `absmax` (the largest absolute value, as such: never below 0) or `last` (the last position that counts).
        padding: `exclude` leaves padded positions out; `zero` counts each as a product of 0, for `max` and `sum` alone.
        cu_seqlens: int32 or int64 [S+1] instead of lengths, for packed samples: 0 and the end of each sample.
        keep: bool of act's shape without K: only positions marked there count, and of those only the real ones.

    Returns:
        float32 [S, K]; products in float32. NaN in gives NaN out. float64 inputs go to the reference.

    Raises:
        ValueError: shapes or devices disagree, the last dimension is strided, an option is unknown, or a sample is
            empty. Lengths and masks on the device are not looked at, for that would wait for it: the maximum of an
            empty sample is -inf there, and one longer than T ends at T.
    """
    if torch.float64 in (act.dtype, grad.dtype):
        return reference.actgrad_reduce(act, grad, lengths, reduction, padding, cu_seqlens=cu_seqlens, keep=keep)
    segments = check_actgrad(act, grad, lengths, reduction, padding, cu_seqlens, keep)
    validate.launchable(act=act, grad=grad)
    bounds = segments.bounds.to(act.device, non_blocking=True)
    keep = None if keep is None else keep.to(act.device, non_blocking=True)
    if reduction == "last":
        return _at_last(act, grad, bounds, segments.packed, keep)
    return actgrad_reduce_op(act, grad, bounds, keep, segments.packed, reduction, padding)


def _at_last(
    act: torch.Tensor, grad: torch.Tensor, bounds: torch.Tensor, packed: bool, keep: torch.Tensor | None
) -> torch.Tensor:
    """float32 [S, K] at each sample's last counted position: one row a sample, so a kernel would save nothing."""
    if packed:
        place = torch.arange(act.shape[0], device=act.device)
        own = (place >= bounds[:-1, None]) & (place < bounds[1:, None])
        rows = last_counted((own if keep is None else own & keep)[:, :, None])[:, 0, 0]
        return act[rows].float() * grad[rows].float()
    rows = last_counted(counted_positions(act, bounds, keep)[:, :, None]).expand(-1, 1, act.shape[-1])
    return act.gather(1, rows)[:, 0].float() * grad.gather(1, rows)[:, 0].float()


def tile_for(samples: int, columns: int) -> Tile:
    """The tile that gives every multiprocessor work."""
    return WIDE if samples * cdiv(columns, WIDE.columns) >= ENOUGH_PROGRAMS else NARROW


@operator()
def actgrad_reduce_op(
    act: torch.Tensor,
    grad: torch.Tensor,
    bounds: torch.Tensor,
    keep: torch.Tensor | None,
    packed: bool,
    reduction: str,
    padding: str,
) -> torch.Tensor:
    """The launch, on arguments that `actgrad_reduce` has checked."""
    samples, rows, columns = len(bounds) - packed, act.shape[-2], act.shape[-1]
    tile = tile_for(samples, columns)
    blocks = cdiv(columns, tile.columns)
    # A mean would need each part's count.
    parts = Split(1, rows) if reduction == "mean" else split(samples * blocks, rows)
    out = allocate.empty((samples * parts.parts, columns), torch.float32, act.device)
    if out.numel() == 0:
        return out
    with torch.cuda.device_of(act):
        actgrad_kernel[(samples * parts.parts * blocks,)](
            act_ptr=act,
            grad_ptr=grad,
            bounds_ptr=bounds.contiguous(),
            keep_ptr=None if keep is None else keep.contiguous().view(torch.uint8),
            out_ptr=out,
            rows=rows,
            parts=parts.parts,
            part_rows=parts.rows,
            columns=columns,
            act_sample_stride=0 if packed else act.stride(0),
            act_row_stride=act.stride(-2),
            grad_sample_stride=0 if packed else grad.stride(0),
            grad_row_stride=grad.stride(-2),
            PACKED=packed,
            MASKED=keep is not None,
            MAXIMUM=reduction in ("max", "absmax"),
            ABSOLUTE=reduction == "absmax",
            MEAN=reduction == "mean",
            PADS_COUNT=padding == "zero",
            BLOCK_T=tile.rows,
            BLOCK_K=tile.columns,
            num_warps=tile.warps,
        )
    return merged(out, parts.parts, reduction)


@fake_of(actgrad_reduce_op)
def _(
    act: torch.Tensor,
    grad: torch.Tensor,
    bounds: torch.Tensor,
    keep: torch.Tensor | None,
    packed: bool,
    reduction: str,
    padding: str,
) -> torch.Tensor:
    return act.new_empty((bounds.shape[0] - packed, act.shape[-1]), dtype=torch.float32)
