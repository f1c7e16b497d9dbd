"""Which token positions of a sample count, and how they become one score."""

from __future__ import annotations

import torch
from culnig_kernels.validate import FOLDED_REDUCTIONS, REDUCTIONS

from culnig_fast.errors import CulnigError

FUSED_REDUCTIONS = (*FOLDED_REDUCTIONS, "mean")
"""Reductions that fused layers know: the mean is their sum, divided afterwards."""


def check_reduction(reduction: str, padding: str = "exclude") -> None:
    """Raise CulnigError for an unknown reduction or padding, or a pair that means nothing."""
    for name, value, known in (("reduction", reduction, REDUCTIONS), ("padding", padding, ("exclude", "zero"))):
        if value not in known:
            raise CulnigError(f"unknown {name} {value!r}; choose from {', '.join(known)}")
    if padding == "zero" and reduction not in FOLDED_REDUCTIONS:
        raise CulnigError(
            f"padding='zero' is for parity with the published program and goes with reduction "
            f"{' or '.join(FOLDED_REDUCTIONS)}, not {reduction!r}; use padding='exclude'"
        )


def counted(positions: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The real ones of the positions to count; waits for the device.

    Args:
        positions: bool [batch, T].
        lengths: int64 [batch] real positions of each sample.

    Returns:
        bool [batch, T], on the device of `lengths`.

    Raises:
        CulnigError: another shape or dtype, or a sample of which no position would count.
    """
    if positions.dtype != torch.bool or positions.dim() != 2 or positions.shape[:1] != lengths.shape:
        raise CulnigError(
            f"positions must be bool [{len(lengths)}, T], not {str(positions.dtype).removeprefix('torch.')} "
            f"{list(positions.shape)}"
        )
    positions = positions.to(lengths.device)
    kept = positions & (torch.arange(positions.shape[1], device=lengths.device) < lengths[:, None])
    empty = (~kept.any(dim=1)).nonzero()[:, 0].tolist()
    if empty:
        raise CulnigError(
            f"positions mark no real token of sample {empty[0]} of the batch ({len(empty)} such); "
            "mark one at least, or leave the sample out"
        )
    return kept
