"""Activation × gradient, reduced over each sample's positions in one read of both."""

# Kernels take pointers and numbers that Triton types at launch.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from culnig_kernels import allocate, reference, validate
from culnig_kernels.reference.scores import check_actgrad
from culnig_kernels.running import finish, fold, scored_rows, start


class Tile(NamedTuple):
    """Rows and columns that a program holds at once, and its warps."""

    rows: int
    columns: int
    warps: int


WIDE = Tile(rows=16, columns=256, warps=4)
NARROW = Tile(rows=64, columns=64, warps=4)
TILES = (WIDE, NARROW)
"""Every tile that is launched: 32 elements a thread, so that a 16-bit input is read 16 bytes at a time."""

FEW_PROGRAMS = 528
"""Below four programs for each of an H100's 132 multiprocessors, narrower columns share the work better."""


@triton.jit
def actgrad_kernel(
    act_ptr,  # [S, T, K] or packed [T, K]
    grad_ptr,  # as act
    bounds_ptr,  # [S], or [S+1] when PACKED
    out_ptr,  # [S, K] float32
    rows,  # T
    columns,  # K
    act_sample_stride,
    act_row_stride,
    grad_sample_stride,
    grad_row_stride,
    PACKED: tl.constexpr,
    MAXIMUM: tl.constexpr,
    PADS_COUNT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Neighbouring programs read neighbouring columns of the same rows.
    blocks = tl.cdiv(columns, BLOCK_K)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    cols = (tl.program_id(0) % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = cols < columns
    first, end = scored_rows(bounds_ptr, sample, rows, PACKED)
    act_ptr += sample * act_sample_stride
    grad_ptr += sample * grad_sample_stride

    running = start(BLOCK_T, BLOCK_K, MAXIMUM)
    for row in range(first, end, BLOCK_T):
        at = row + tl.arange(0, BLOCK_T)
        keep = at < end
        mask = keep[:, None] & inside[None, :]
        at = at.to(tl.int64)[:, None]
        act = tl.load(act_ptr + at * act_row_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + at * grad_row_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        running = fold(running, act * grad, keep, MAXIMUM)
    result = finish(running, MAXIMUM)
    if PADS_COUNT and MAXIMUM:
        padded = tl.maximum(result, 0.0, propagate_nan=tl.PropagateNan.ALL)
        result = tl.where(end < rows, padded, result)
    tl.store(out_ptr + sample * columns + cols, result, mask=inside)


def actgrad_reduce(
    act: torch.Tensor,
    grad: torch.Tensor,
    lengths: torch.Tensor | None = None,
    reduction: str = "max",
    padding: str = "exclude",
    *,
    cu_seqlens: torch.Tensor | None = None,
) -> torch.Tensor:
    """Activation × gradient of each sample, reduced over its token positions.

    Args:
        act: [S, T, K] right-padded or [T, K] packed; bf16, fp16 or fp32, any row stride, last dimension contiguous.
        grad: of act's shape, of any of these dtypes.
        lengths: int32 or int64 [S] real tokens of each padded sample, in 1…T; the rest of a row is padding.
        reduction: `max` (CULNIG, section 2) or `sum` (first-order effect of zeroing the neuron everywhere).
        padding: `exclude` leaves padded positions out; `zero` counts each as a product of 0.
        cu_seqlens: int32 or int64 [S+1] instead of lengths, for packed samples: 0 and the end of each sample.

    Returns:
        float32 [S, K]; products in float32. NaN in gives NaN out. float64 inputs go to the reference.

    Raises:
        ValueError: shapes or devices disagree, the last dimension is strided, an option is unknown, or a sample is
            empty. Lengths on the device are not looked at, for that would wait for it: an empty sample gives -inf
            there, and one longer than T ends at T.
    """
    if torch.float64 in (act.dtype, grad.dtype):
        return reference.actgrad_reduce(act, grad, lengths, reduction, padding, cu_seqlens=cu_seqlens)
    segments = check_actgrad(act, grad, lengths, reduction, padding, cu_seqlens)
    validate.floats(act=act, grad=grad)
    validate.launchable(act=act, grad=grad)
    bounds = segments.bounds.to(act.device, non_blocking=True)
    return torch.ops.culnig.actgrad_reduce(act, grad, bounds, segments.packed, reduction, padding)


def tile_for(samples: int, columns: int) -> Tile:
    """The tile that gives every multiprocessor work."""
    return WIDE if samples * triton.cdiv(columns, WIDE.columns) >= FEW_PROGRAMS else NARROW


@torch.library.custom_op("culnig::actgrad_reduce", mutates_args=())
def actgrad_reduce_op(
    act: torch.Tensor, grad: torch.Tensor, bounds: torch.Tensor, packed: bool, reduction: str, padding: str
) -> torch.Tensor:
    """The launch, on arguments that `actgrad_reduce` has checked."""
    samples, columns = len(bounds) - packed, act.shape[-1]
    out = allocate.empty((samples, columns), torch.float32, act.device)
    if out.numel() == 0:
        return out
    tile = tile_for(samples, columns)
    with torch.cuda.device_of(act):
        actgrad_kernel[(samples * triton.cdiv(columns, tile.columns),)](
            act_ptr=act,
            grad_ptr=grad,
            bounds_ptr=bounds.contiguous(),
            out_ptr=out,
            rows=act.shape[-2],
            columns=columns,
            act_sample_stride=0 if packed else act.stride(0),
            act_row_stride=act.stride(-2),
            grad_sample_stride=0 if packed else grad.stride(0),
            grad_row_stride=grad.stride(-2),
            PACKED=packed,
            MAXIMUM=reduction == "max",
            PADS_COUNT=padding == "zero",
            BLOCK_T=tile.rows,
            BLOCK_K=tile.columns,
            num_warps=tile.warps,
        )
    return out


@actgrad_reduce_op.register_fake
def _(
    act: torch.Tensor, grad: torch.Tensor, bounds: torch.Tensor, packed: bool, reduction: str, padding: str
) -> torch.Tensor:
    return act.new_empty((bounds.shape[0] - packed, act.shape[-1]), dtype=torch.float32)
