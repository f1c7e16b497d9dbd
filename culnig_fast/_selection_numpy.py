"""NumPy twin of the C++ core: the same functions, results to the last bit, and messages.

It defines what the core computes. Sums run over groups in row order, divisions and subtractions are single
float64 operations, rankings are those of a stable descending sort.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def top_k(values: np.ndarray, k: int) -> np.ndarray:
    """Indices, int64 [k], of the k largest of `values` float64 [n], in stable descending order.

    Raises:
        TypeError, ValueError: an argument is unfit, or a value is NaN (the message names the first).
    """
    values = _array(values, "values", 1, np.float64)
    k = _whole(k, "k")
    if not 0 <= k <= values.size:
        raise ValueError(f"k must be between 0 and {values.size}, not {k}")
    missing = np.flatnonzero(np.isnan(values))
    if missing.size:
        raise ValueError(f"values[{missing[0]}] is NaN")
    return np.argsort(-values, kind="stable")[:k].astype(np.int64)


def mean_difference(
    table: np.ndarray,
    samples: int,
    control: np.ndarray | None,
    control_samples: int,
    ranges: np.ndarray,
    threads: int = 0,
) -> np.ndarray:
    """Σ rows of `table` / samples − Σ rows of `control` / control_samples at `ranges`, float64 [n].

    Args:
        table: float64 [groups, neurons].
        samples: what the sum is divided by.
        control: float64 [any groups, neurons], or None for no second term.
        control_samples: not read without `control`.
        ranges: int64 [m, 2] starts and stops of column ranges; the result holds them one after the other.
        threads: for the core, 0 for one a core; never changes a result.

    Raises:
        TypeError, ValueError: an argument is unfit; the message names it.
    """
    table = _array(table, "table", 2, np.float64)
    _need_rows(table, "table")
    samples = _count(samples, "samples")
    if control is not None:
        control = _array(control, "control", 2, np.float64)
        _need_rows(control, "control")
        if control.shape[1] != table.shape[1]:
            raise ValueError(f"control has {control.shape[1]} columns, but table has {table.shape[1]}")
        control_samples = _count(control_samples, "control_samples")
    ranges = _ranges(ranges, table.shape[1])
    threads = _whole(threads, "threads")
    if not 0 <= threads <= 1024:
        raise ValueError(f"threads must be between 0 and 1024, not {threads}")
    out = np.empty(int((ranges[:, 1] - ranges[:, 0]).sum()))
    end = 0
    with np.errstate(all="ignore"):
        for start, stop in ranges.tolist():
            here = slice(end, end + stop - start)
            out[here] = _sum_rows(table[:, start:stop]) / samples
            if control is not None:
                out[here] -= _sum_rows(control[:, start:stop]) / control_samples
            end = here.stop
    return out


def z_scores(values: np.ndarray, row: int) -> np.ndarray:
    """Population z-score, float64 [n], of one row within each column of `values` float64 [groups, n].

    Equal values give z = 0. A column is first scaled by a power of two to below 1 (exact; z does not depend
    on it), so that no square under- or overflows, and its mean is taken from its first value on, so that
    equal values have exactly themselves as mean and a deviation of exactly 0, which summing them up does not
    give (16 × 0.1).

    Raises:
        TypeError, ValueError: an argument is unfit, or a value is not finite (the message names the first).
    """
    values = _array(values, "values", 2, np.float64)
    _need_rows(values, "values")
    row = _whole(row, "row")
    groups = len(values)
    if not 0 <= row < groups:
        raise ValueError(f"row must be between 0 and {groups - 1}, not {row}")
    infinite = np.argwhere(~np.isfinite(values.T))
    if len(infinite):
        raise ValueError(f"values[{infinite[0][1]}, {infinite[0][0]}] is not finite")
    _, exponent = np.frexp(np.abs(values).max(axis=0))
    scaled = np.ldexp(values, -exponent)
    mean = scaled[0] + _sum_rows(scaled - scaled[0]) / groups
    deviation = np.sqrt(_sum_rows((scaled - mean) ** 2) / groups)
    return np.divide(scaled[row] - mean, deviation, out=np.zeros_like(mean), where=deviation != 0)


def _sum_rows(rows: np.ndarray) -> np.ndarray:
    """Sum in row order; np.sum leaves its order open."""
    total = np.array(rows[0])
    for row in rows[1:]:
        total += row
    return total


def _array(value: Any, name: str, dimensions: int, dtype: type) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, not {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must be {np.dtype(dtype)}, not {value.dtype}")
    if value.ndim != dimensions:
        raise ValueError(f"{name} must have {dimensions} dimension(s), not {value.ndim}")
    contiguous = not value.size or value.shape[-1] == 1 or value.strides[-1] == value.itemsize
    if not contiguous or not value.flags.aligned or (dimensions > 1 and value.strides[0] % value.itemsize):
        raise ValueError(f"{name} must be aligned and contiguous along its last dimension")
    return value


def _need_rows(value: np.ndarray, name: str) -> None:
    if not len(value):
        raise ValueError(f"{name} must have at least one row")


def _whole(value: Any, name: str) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}") from None
    if not -(2**63) <= whole < 2**63:
        raise ValueError(f"{name} must fit in 64 bits, not {whole}")
    return whole


def _count(value: Any, name: str) -> int:
    count = _whole(value, name)
    if not 1 <= count <= 2**53:
        raise ValueError(f"{name} must be between 1 and 2**53, not {count}")
    return count


def _ranges(value: Any, columns: int) -> np.ndarray:
    ranges = _array(value, "ranges", 2, np.int64)
    if ranges.shape[1] != 2:
        raise ValueError(f"ranges must have shape [n, 2], not [n, {ranges.shape[1]}]")
    if len(ranges) and ranges.strides[0] != 2 * ranges.itemsize:
        raise ValueError("ranges must be contiguous")
    for i, (start, stop) in enumerate(ranges.tolist()):
        if not 0 <= start <= stop <= columns:
            raise ValueError(f"ranges[{i}] is {start} to {stop}, outside the table's columns 0 to {columns}")
    return ranges
