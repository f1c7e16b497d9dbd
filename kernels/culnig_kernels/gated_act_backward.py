"""Backward of act(gate)·up that scores gate, up and their product while it has them in registers."""

# Kernels take pointers and numbers that Triton types at launch.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from culnig_kernels import allocate, validate
from culnig_kernels.gated_act import activate
from culnig_kernels.operators import fake_of, operator
from culnig_kernels.reference.gated import ScoreColumns, check_gated_act_backward
from culnig_kernels.running import finish, fold, start, visited_rows
from culnig_kernels.splitting import chunks, merged, split
from culnig_kernels.whole import cdiv

BLOCK_T = 8
BLOCK_K = 256
WARPS = 4
"""16 elements a thread: five tiles and two running maxima then fit without spilling;
tests/kernels/test_compile.py holds the configuration to that."""


@triton.jit(do_not_specialize=["samples", "rows", "parts", "part_rows"])
def gated_act_backward_kernel(
    dh_ptr,  # [S, T, K] or [T, K]
    gate_ptr,  # as dh
    up_ptr,  # as dh
    bounds_ptr,  # [S], or [S+1] when PACKED; unused when nothing is scored
    d_gate_up_ptr,  # contiguous [S, T, 2K] or [T, 2K]
    gate_score_ptr,  # [S · parts, K] float32, when SCORE_GATE
    up_score_ptr,  # [S · parts, K] float32, when SCORE_UP
    samples,  # S
    rows,  # T
    parts,  # of a sample's rows
    part_rows,
    columns,  # K
    dh_sample_stride,
    dh_row_stride,
    gate_sample_stride,
    gate_row_stride,
    up_sample_stride,
    up_row_stride,
    score_row_stride,
    ACTIVATION: tl.constexpr,
    SCORE_GATE: tl.constexpr,
    SCORE_UP: tl.constexpr,
    PACKED: tl.constexpr,
    MAXIMUM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    blocks = tl.cdiv(columns, BLOCK_K)
    index = tl.program_id(0) // blocks
    cols = (tl.program_id(0) % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = cols < columns
    score: tl.constexpr = SCORE_GATE or SCORE_UP
    sample, first, end, write_first, write_end = visited_rows(
        bounds_ptr, index, samples, rows, parts, part_rows, score, PACKED
    )
    dh_ptr += sample * dh_sample_stride
    gate_ptr += sample * gate_sample_stride
    up_ptr += sample * up_sample_stride
    if not PACKED:
        d_gate_up_ptr += sample * rows * 2 * columns

    best_gate = start(BLOCK_T, BLOCK_K, MAXIMUM)
    best_up = start(BLOCK_T, BLOCK_K, MAXIMUM)
    for row in range(write_first, write_end, BLOCK_T):
        at = row + tl.arange(0, BLOCK_T)
        mask = (at < write_end)[:, None] & inside[None, :]
        keep = (at >= first) & (at < end)
        at = at.to(tl.int64)[:, None]
        dh = tl.load(dh_ptr + at * dh_row_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        gate = tl.load(gate_ptr + at * gate_row_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        up = tl.load(up_ptr + at * up_row_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        value, slope = activate(gate, ACTIVATION)
        d_gate = dh * up * slope
        d_up = dh * value
        to = d_gate_up_ptr + at * 2 * columns + cols[None, :]
        tl.store(to, d_gate.to(d_gate_up_ptr.dtype.element_ty), mask=mask)
        tl.store(to + columns, d_up.to(d_gate_up_ptr.dtype.element_ty), mask=mask)
        if SCORE_GATE:
            best_gate = fold(best_gate, gate * d_gate, keep, MAXIMUM)
        if SCORE_UP:
            best_up = fold(best_up, up * d_up, keep, MAXIMUM)
    if SCORE_GATE:
        tl.store(gate_score_ptr + index.to(tl.int64) * score_row_stride + cols, finish(best_gate, MAXIMUM), mask=inside)
    if SCORE_UP:
        tl.store(up_score_ptr + index.to(tl.int64) * score_row_stride + cols, finish(best_up, MAXIMUM), mask=inside)


def gated_act_backward(
    dh: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    lengths: torch.Tensor | None = None,
    *,
    activation: str = "silu",
    scores: Sequence[str] = (),
    reduction: str = "max",
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of act(gate)·up and, for each sample, activation × gradient reduced over its positions.

    The score of the product h = act(gate)·up is h·dh = up·(act(gate)·dh), which is the score of up.

    Args:
        dh: [S, T, K] or packed [T, K] gradient with respect to act(gate)·up; bf16, fp16 or fp32, any row stride, last
            dimension contiguous.
        gate: of dh's shape, the gate pre-activation; never overwritten.
        up: of dh's shape; never overwritten.
        lengths: int32 or int64 [S] real tokens of each padded sample; needed for scores only.
        activation: one of `activations.ACTIVATIONS`.
        scores: which to return, out of `gate`, `up` and `act`, each once; without any, dh may be [..., K] of one row
            stride.
        reduction: `max` or `sum` over a sample's positions.
        cu_seqlens: int32 or int64 [S+1] instead of lengths, for packed samples.

    Returns:
        d_gate_up contiguous [..., 2K] of gate's dtype, gradients of every row, padding included; float32 [S,
        len(scores)·K], the columns of each score in the order asked for, or None. NaN in gives NaN out. Scores take
        gradients before they are rounded to gate's dtype.

    Raises:
        ValueError: shapes or devices disagree, the last dimension is strided, an option is unknown, or a sample is
            empty. Lengths on the device are not looked at: an empty sample gives -inf there.
    """
    segments = check_gated_act_backward(dh, gate, up, lengths, activation, scores, reduction, cu_seqlens)
    validate.launchable(dh=dh, gate=gate, up=up)
    shape = (*dh.shape[:-1], 2 * dh.shape[-1])
    if segments is None:
        dh, gate, up = (validate.rows(name, x) for name, x in (("dh", dh), ("gate", gate), ("up", up)))
    bounds = None if segments is None else segments.bounds.to(dh.device, non_blocking=True)
    d_gate_up, found = gated_act_backward_op(dh, gate, up, bounds, activation, ",".join(scores), reduction)
    return d_gate_up.view(shape), found if scores else None


def _names(scores: str) -> list[str]:
    return scores.split(",") if scores else []


@operator()
def gated_act_backward_op(
    dh: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    bounds: torch.Tensor | None,
    activation: str,
    scores: str,
    reduction: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The launch, on arguments that `gated_act_backward` has checked; names of scores are parted by commas."""
    rows, columns = dh.shape[-2:]
    packed = bounds is not None and dh.dim() == 2
    samples, blocks = 1 if bounds is None else len(bounds) - packed, cdiv(columns, BLOCK_K)
    parts = chunks(rows) if bounds is None else split(samples * blocks, rows)
    out = allocate.empty((*dh.shape[:-1], 2 * columns), gate.dtype, gate.device)
    found = ScoreColumns(_names(scores), samples * parts.parts, columns, torch.float32, gate.device)
    if dh.numel() == 0:
        return out, found.whole[:samples]
    strided = dh.dim() == 3
    with torch.cuda.device_of(dh):
        gated_act_backward_kernel[(samples * parts.parts * blocks,)](
            dh_ptr=dh,
            gate_ptr=gate,
            up_ptr=up,
            bounds_ptr=None if bounds is None else bounds.contiguous(),
            d_gate_up_ptr=out,
            gate_score_ptr=found.gate,
            up_score_ptr=found.up,
            samples=samples,
            rows=rows,
            parts=parts.parts,
            part_rows=parts.rows,
            columns=columns,
            dh_sample_stride=dh.stride(0) if strided else 0,
            dh_row_stride=dh.stride(-2),
            gate_sample_stride=gate.stride(0) if strided else 0,
            gate_row_stride=gate.stride(-2),
            up_sample_stride=up.stride(0) if strided else 0,
            up_row_stride=up.stride(-2),
            score_row_stride=found.whole.stride(0),
            ACTIVATION=activation,
            SCORE_GATE=found.gate is not None,
            SCORE_UP=found.up is not None,
            PACKED=not strided,
            MAXIMUM=reduction == "max",
            BLOCK_T=BLOCK_T,
            BLOCK_K=BLOCK_K,
            num_warps=WARPS,
        )
    if bounds is None:
        return out, found.whole[:samples]
    return out, merged(found.filled(), parts.parts, reduction)


@fake_of(gated_act_backward_op)
def _(
    dh: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    bounds: torch.Tensor | None,
    activation: str,
    scores: str,
    reduction: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    columns = dh.shape[-1]
    samples = 1 if bounds is None else bounds.shape[0] - (dh.dim() == 2)
    found = gate.new_empty((samples, len(_names(scores)) * columns), dtype=torch.float32)
    return gate.new_empty((*dh.shape[:-1], 2 * columns)), found
