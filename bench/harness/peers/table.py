"""The rows of the comparison and the table that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.batches import Batch
from harness.peers.peer import PEERS
from harness.report import format_table, make_rows
from harness.rounds import Outcome
from harness.shapes import Size

COLUMNS = (
    ("method", "method", ""),
    ("lines", "lines", "d"),
    ("seconds", "median_seconds", ".4g"),
    ("time ÷ bare", "time_over_bare", ".3f"),
    ("(20–80 %)", "time_over_bare_range", ""),
    ("peak MB", "peak_mb", ".4g"),
    ("memory ÷ bare", "memory_over_bare", ".2f"),
)


def peer_rows(
    shape: str,
    outcomes: dict[str, Outcome],
    batch: Batch,
    size: Size,
    rates: Sequence[float],
    resident: Mapping[tuple[str, str], int] | None,
) -> list[dict[str, Any]]:
    """`make_rows`, with what a user writes and, on a CPU, resident memory in place of that of tensors.

    Args:
        shape, outcomes, batch, size, rates: see `make_rows`.
        resident: (shape, row) → bytes; None where the outcomes' own peaks are the device's.
    """
    tensors = {name: outcome.peak for name, outcome in outcomes.items()}
    if resident is not None:
        for name, outcome in outcomes.items():
            outcome.peak = resident.get((shape, name))
    rows = make_rows(shape, outcomes, batch, size, rates)
    for row in rows:
        peer = PEERS[row["method"]]
        timed = row["status"] == "timed"
        row |= {
            "library": getattr(peer, "library", "transformers"),
            "lines": getattr(peer, "lines", None),
            "note": row["note"] or getattr(peer, "note", ""),
            "parameters": size.total,
            "median_seconds": row["seconds"]["median"] if row["seconds"] else None,
            "peak_mb": None if row["peak_bytes"] is None else row["peak_bytes"] / 1e6,
            "tensor_bytes": tensors[row["method"]] if timed else None,
        }
    return rows


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Aligned text."""
    return format_table(rows, COLUMNS)
