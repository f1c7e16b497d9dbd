"""Pieces that the scoring kernels share: which rows a program visits, and reductions that keep NaN."""

# Kernels take pointers and numbers that Triton types at launch.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scored_rows(
    bounds_ptr,  # [S] lengths, or [S+1] cumulative ones when PACKED
    sample,
    rows,
    PACKED: tl.constexpr,
):
    """(first, end) rows of a sample, kept inside 0…rows whatever the bounds say."""
    if PACKED:
        first = tl.load(bounds_ptr + sample).to(tl.int32)
        end = tl.load(bounds_ptr + sample + 1).to(tl.int32)
    else:
        end = tl.load(bounds_ptr + sample).to(tl.int32)
        first = end * 0
    return tl.maximum(first, 0), tl.minimum(end, rows)


@triton.jit
def visited_rows(
    bounds_ptr,  # as in scored_rows; unused when nothing is scored
    index,
    samples,
    rows,
    parts,
    part_rows,
    SCORE: tl.constexpr,
    PACKED: tl.constexpr,
):
    """What the index-th program of a backward visits: (sample, first, end, write_first, write_end).

    Each sample is cut into parts. Gradients are written for every row, padding included, and scores taken from
    first…end alone; with nothing to score, rows need not be kept together by sample.
    """
    sample = (index // parts).to(tl.int64)
    if SCORE:
        first, end = scored_rows(bounds_ptr, sample, rows, PACKED)
        write_first = tl.where(sample == 0, 0, first) if PACKED else 0
        write_end = tl.where(sample == samples - 1, rows, end) if PACKED else rows
    else:
        first, end = 0, rows
        write_first, write_end = 0, rows
    write_first += (index % parts) * part_rows
    return sample, first, end, write_first, tl.minimum(write_end, write_first + part_rows)


@triton.jit
def start(BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, MAXIMUM: tl.constexpr):
    """The neutral tile of a running reduction."""
    if MAXIMUM:
        return tl.full([BLOCK_T, BLOCK_K], float("-inf"), tl.float32)
    else:
        return tl.full([BLOCK_T, BLOCK_K], 0.0, tl.float32)


@triton.jit
def fold(running, product, keep, MAXIMUM: tl.constexpr):
    """The running reduction with one more tile [BLOCK_T, BLOCK_K], of which the rows marked in keep count."""
    if MAXIMUM:
        counted = tl.where(keep[:, None], product, float("-inf"))
        return tl.maximum(running, counted, propagate_nan=tl.PropagateNan.ALL)
    else:
        return running + tl.where(keep[:, None], product, 0.0)


@triton.jit
def finish(running, MAXIMUM: tl.constexpr):
    """[BLOCK_K] from the tile; tl.max alone would drop a NaN. Once a program, float64 costs nothing."""
    if MAXIMUM:
        broken = running != running  # noqa: PLR0124 (true of NaN alone)
        largest = tl.max(tl.where(broken, float("-inf"), running), 0)
        return tl.where(tl.max(broken.to(tl.int32), 0) != 0, float("nan"), largest)
    else:
        return tl.sum(running.to(tl.float64), 0).to(tl.float32)
