"""How the rows of a sample are shared out among programs, and what they found put together again.

A program that scores keeps a sample's rows to itself, so its score needs no second pass. A few long samples would leave
most of a GPU idle that way: they are cut into parts, each scored by a program of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from culnig_kernels.whole import cdiv

ENOUGH_PROGRAMS = 528
"""Four for each of an H100's 132 multiprocessors; with fewer, rows are cut."""

LEAST_ROWS = 128
"""Of a part: below that, beginning and ending a program weighs on the bytes that it reads."""

UNSCORED_ROWS = 64
"""Of a part where nothing is scored, and rows need not be kept together by sample."""

_TILE_ROWS = 64
"""Parts are whole tiles of every kernel."""


class Split(NamedTuple):
    """Of each sample's rows: into how many parts, and rows of a part."""

    parts: int
    rows: int


def split(programs: int, rows: int) -> Split:
    """Parts that give a GPU enough programs.

    Args:
        programs: there would be with samples left whole.
        rows: of a sample, or of all samples together where they are packed.
    """
    if programs >= ENOUGH_PROGRAMS or programs == 0 or rows < 2 * LEAST_ROWS:
        return Split(1, rows)
    parts = min(cdiv(ENOUGH_PROGRAMS, programs), rows // LEAST_ROWS)
    each = cdiv(cdiv(rows, parts), _TILE_ROWS) * _TILE_ROWS
    return Split(cdiv(rows, each), each)


def chunks(rows: int) -> Split:
    """Parts where nothing is scored."""
    return Split(max(1, cdiv(rows, UNSCORED_ROWS)), UNSCORED_ROWS)


def merged(found: torch.Tensor, parts: int, reduction: str) -> torch.Tensor:
    """float32 [S, K] of samples, from that of their parts, [S·parts, K]; NaN stays."""
    if parts == 1:
        return found
    apart = found.unflatten(0, (-1, parts))
    return apart.sum(1, dtype=torch.float64).float() if reduction == "sum" else apart.amax(1)
