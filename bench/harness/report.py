"""Rows, the table people read and the JSON that programs read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.batches import Batch
from harness.rounds import Outcome
from harness.shapes import Size

COLUMNS = (
    ("method", "method", ""),
    ("samples/s", "samples_per_s", ".4g"),
    ("tokens/s", "tokens_per_s", ".4g"),
    ("time ÷ bare", "time_over_bare", ".3f"),
    ("(20–80 %)", "time_over_bare_range", ""),
    ("% of roof", "roof_percent", ".1f"),
    ("memory ÷ bare", "memory_over_bare", ".2f"),
)


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Median, 20th and 80th percentile and minimum of the values that are there; None when none is."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    low, median, high = np.percentile(there, [20, 50, 80])
    return {"median": float(median), "p20": float(low), "p80": float(high), "min": min(there)}


def make_rows(
    shape: str, outcomes: dict[str, Outcome], batch: Batch, size: Size, rates: Sequence[float]
) -> list[dict[str, Any]]:
    """One JSON-ready row a method. A figure that was not measured is None, and the status says why.

    `time_over_bare` is the median over rounds of the ratio within a round; `roof_percent` likewise, against
    the product rate measured in that round, counting 4 FLOPs a weight and token (`Size.flops`).
    """
    bare = outcomes.get("bare")
    least = min((s for s in bare.seconds if s is not None), default=None) if bare is not None else None
    flops = size.flops(batch.tokens, len(batch))
    rows = []
    for outcome in outcomes.values():
        timed = outcome.status == "timed"
        seconds = spread(outcome.seconds) if timed else None
        ratio = spread(_ratios(outcome.seconds, bare.seconds)) if timed and bare is not None else None
        roof = spread([flops / s / rate * 100 if s else None for s, rate in zip(outcome.seconds, rates, strict=False)])
        rows.append(
            {
                "shape": shape,
                "method": outcome.method,
                "status": outcome.status,
                "note": outcome.note,
                "samples": len(batch),
                "tokens": batch.tokens,
                "layer_parameters": size.layers,
                "samples_per_s": len(batch) / seconds["median"] if seconds else None,
                "tokens_per_s": batch.tokens / seconds["median"] if seconds else None,
                "seconds": seconds,
                "time_over_bare": ratio["median"] if ratio else None,
                "time_over_bare_spread": ratio,
                "least_time_over_least_bare": seconds["min"] / least if seconds and least else None,
                "roof_percent": roof["median"] if roof and timed else None,
                "roof_percent_spread": roof if timed else None,
                "peak_bytes": outcome.peak if timed else None,
                "memory_over_bare": outcome.peak / bare.peak
                if timed and bare is not None and bare.peak and outcome.peak is not None and outcome.scale == 1.0
                else None,
                "rounds": sum(s is not None for s in outcome.seconds),
                "check": _verdict(outcome),
            }
        )
    return rows


def _verdict(outcome: Outcome) -> dict[str, Any] | None:
    """JSON knows no NaN, which a wrong method may well have produced: None there."""
    if outcome.verdict is None:
        return None
    facts = vars(outcome.verdict).items()
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in facts}


def _ratios(seconds: Sequence[float | None], bare: Sequence[float | None]) -> list[float | None]:
    return [a / b if a is not None and b is not None else None for a, b in zip(seconds, bare, strict=False)]


def growth(rows: Sequence[dict[str, Any]], by: str) -> dict[str, float]:
    """Method → exponent of its time in `by` ("tokens" or "layer_parameters"); 1 is linear growth."""
    exponents = {}
    for name in dict.fromkeys(row["method"] for row in rows):
        points = [(row[by], row["seconds"]["median"]) for row in rows if row["method"] == name and row["seconds"]]
        if len({x for x, _ in points}) >= 2:
            x, y = np.log(np.array(points)).T
            exponents[name] = float(np.polyfit(x, y, 1)[0])
    return exponents


def format_table(rows: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str, str]] = COLUMNS) -> str:
    """The rows as aligned text; a row without figures gives its reason instead.

    Args:
        rows: see `make_rows`.
        columns: heading, key and format of each.
    """
    cells = [[title for title, _, _ in columns]]
    reasons: list[str] = [""]
    for row in rows:
        ratio = row["time_over_bare_spread"]
        shown = {**row, "time_over_bare_range": f"{ratio['p20']:.3f}–{ratio['p80']:.3f}" if ratio else ""}
        cells.append([_cell(shown[key], form) for _, key, form in columns])
        reasons.append(row["note"] if row["status"] == "timed" else f"{row['status']}: {row['note']}")
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line, reason in zip(cells, reasons, strict=True):
        text = "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        lines.append(f"{text}  {reason}".rstrip())
    return "\n".join(lines)


def format_kernel(row: dict[str, Any]) -> str:
    """One line of the kernels' table."""
    if row["gb_per_s"] is None:
        return f"{row['name']:38} {row['note']}"
    share = row["note"] if row["copy_percent"] is None else f"{row['copy_percent']:5.1f} % of copy"
    return f"{row['name']:38} {row['gb_per_s']:8.0f} GB/s  {share}"


def _cell(value: Any, form: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return format(value, form)
