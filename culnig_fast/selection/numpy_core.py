"""NumPy twin of the C++ core: the same functions, results to the last bit, and messages.

It defines what the core computes. Sums run over groups in row order, divisions and subtractions are single
float64 operations whatever the tables hold, rankings are those of a stable descending sort.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np


def top_k(values: Any, k: int, threads: int = 0) -> np.ndarray:
    """Indices, int64 [k], of the k largest of `values` float64 or float32 [n], in stable descending order.

    Args:
        values: a NumPy array or a CPU tensor of another library.
        k: 0 to n.
        threads: for the core, 0 for one a core; never changes a result.

    Raises:
        TypeError, ValueError: an argument is unfit, or a value is NaN (the message names the first).
    """
    values = _floats(values, "values", 1)
    k = _whole(k, "k", 0, values.size)
    _whole(threads, "threads", 0, 1024)
    missing = np.flatnonzero(np.isnan(values))
    if missing.size:
        raise ValueError(f"values[{missing[0]}] is NaN")
    return np.argsort(-values, kind="stable")[:k].astype(np.int64)


def candidates(
    table: Any,
    samples: int,
    control: Any,
    control_samples: int,
    surface: Any,
    jobs: Sequence[Sequence[Any]],
    threads: int = 0,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For every job, the k columns with the largest Σ table / samples − Σ control / control_samples.

    Args:
        table: float64 or float32 [groups, neurons].
        samples: what sums of its rows are divided by.
        control: [any groups, neurons] of the same type, or None for no second term.
        control_samples: not read without `control`.
        surface: [any groups, neurons] of the same type, or None.
        jobs: a list or a tuple, of lists or tuples of six parts:
            ranges, int64 [m, 2]: starts and stops of the pool's columns, ascending;
            rows, control_rows, surface_rows, int64 [any]: rows of each table that are summed;
            k: how many columns;
            surface_counts, int64 [c]: ascending, at least one with `surface`, none without.
        threads: for the core, 0 for one a core; never changes a result.

    Returns:
        A job's columns int64 [k], best first, their differences float64 [k], and int64 [k]: how many of the
        surface counts are too small for the column to be among the so many largest Σ surface of the pool.

    Raises:
        TypeError, ValueError: an argument is unfit; the message names it.
        ValueError: a difference or a surface sum of a pool is NaN. Its attributes `job`, `of` ("difference" or
            "surface") and `column` name the first.
    """
    table = _table(table, "table")
    samples = _whole(samples, "samples", 1, 2**53, "2**53")
    if control is not None:
        control = _table(control, "control", table)
        control_samples = _whole(control_samples, "control_samples", 1, 2**53, "2**53")
    if surface is not None:
        surface = _table(surface, "surface", table)
    checked = [_job(job, f"jobs[{j}]", table, control, surface) for j, job in enumerate(_items(jobs, "jobs"))]
    _whole(threads, "threads", 0, 1024)
    found = []
    for j, (ranges, rows, control_rows, surface_rows, k, counts) in enumerate(checked):
        pool = np.concatenate([np.arange(start, stop) for start, stop in ranges.tolist()] or [np.zeros(0, np.int64)])
        with np.errstate(all="ignore"):
            difference = _sum_rows(table[rows][:, pool]) / samples
            if control is not None:
                difference -= _sum_rows(control[control_rows][:, pool]) / control_samples
        best = _ranking(difference, k, pool, j, "difference")
        classes = np.full(k, len(counts), dtype=np.int64)
        if surface is not None:
            with np.errstate(all="ignore"):
                sums = _sum_rows(surface[surface_rows][:, pool])
            order = _ranking(sums, counts[-1], pool, j, "surface")
            for c in reversed(range(len(counts))):
                classes[np.isin(best, order[: counts[c]])] = c
        found.append((pool[best], difference[best], classes))
    return found


def group_z(
    table: Any,
    samples: int,
    control: Any,
    control_samples: int,
    control_rows: Any,
    columns: Any,
    rows: Any,
    threads: int = 0,
) -> np.ndarray:
    """z-scores, float64 [n], of table / samples − control / control_samples among all rows, at single places.

    Args:
        table, samples, control, control_samples, threads: as for `candidates`.
        control_rows: int64 [groups], the row of `control` that goes with each of `table`; not read without it.
        columns: int64 [n].
        rows: int64 [n], whose z in each column is wanted.

    Raises:
        TypeError, ValueError: an argument is unfit; the message names it, or the first of `columns` that holds
            NaN or an infinity.
    """
    table = _table(table, "table")
    samples = _whole(samples, "samples", 1, 2**53, "2**53")
    if control is not None:
        control = _table(control, "control", table)
        control_samples = _whole(control_samples, "control_samples", 1, 2**53, "2**53")
        control_rows = _indices(control_rows, "control_rows", len(control), "rows")
        if len(control_rows) != len(table):
            raise ValueError(
                f"control_rows must name a row for each of the table's {len(table)}, not {len(control_rows)}"
            )
    columns = _indices(columns, "columns", table.shape[1], "columns")
    rows = _indices(rows, "rows", len(table), "rows")
    if len(rows) != len(columns):
        raise ValueError(f"rows must name a row for each of the {len(columns)} columns, not {len(rows)}")
    _whole(threads, "threads", 0, 1024)
    with np.errstate(all="ignore"):
        values = table[:, columns].astype(np.float64) / samples
        if control is not None:
            values -= control[control_rows][:, columns].astype(np.float64) / control_samples
    unfit = np.flatnonzero(~np.isfinite(values).all(axis=0))
    if unfit.size:
        raise ValueError(f"the scores of columns[{unfit[0]}] are not finite")
    return _z(values, rows)


def z_scores(values: Any, row: int) -> np.ndarray:
    """Population z-score, float64 [n], of one row within each column of `values` float64 [groups, n].

    Equal values give z = 0. A column is first scaled by a power of two to below 1 (exact; z does not depend
    on it), so that no square under- or overflows, and its mean is taken from its first value on, so that
    equal values have exactly themselves as mean and a deviation of exactly 0, which summing them up does not
    give (16 × 0.1).

    Raises:
        TypeError, ValueError: an argument is unfit, or a value is not finite (the message names the first).
    """
    values = _exactly(values, "values", 2, np.float64)
    if not len(values):
        raise ValueError("values must have at least one row")
    row = _whole(row, "row", 0, len(values) - 1)
    infinite = np.argwhere(~np.isfinite(values.T))
    if len(infinite):
        raise ValueError(f"values[{infinite[0][1]}, {infinite[0][0]}] is not finite")
    return _z(values, np.full(values.shape[1], row))


def _z(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    groups = len(values)
    _, exponent = np.frexp(np.abs(values).max(axis=0))
    scaled = np.ldexp(values, -exponent)
    mean = scaled[0] + _sum_rows(scaled - scaled[0]) / groups
    deviation = np.sqrt(_sum_rows((scaled - mean) ** 2) / groups)
    own = scaled[rows, np.arange(len(rows))]
    return np.divide(own - mean, deviation, out=np.zeros_like(mean), where=deviation != 0)


def _ranking(values: np.ndarray, k: int, pool: np.ndarray, job: int, of: str) -> np.ndarray:
    """Positions, int64 [k], of the largest; ValueError for NaN, which the core raises alike."""
    missing = np.flatnonzero(np.isnan(values))
    if missing.size:
        column = int(pool[missing[0]])
        error = ValueError(f"the {of} of jobs[{job}] is NaN at column {column}")
        error.__dict__.update(job=job, of=of, column=column)
        raise error
    return np.argsort(-values, kind="stable")[:k]


def _sum_rows(rows: np.ndarray) -> np.ndarray:
    """Sum in row order, in float64; np.sum leaves its order open."""
    total = rows[0].astype(np.float64)
    for row in rows[1:]:
        total += row
    return total


def _in_place(value: Any, name: str) -> np.ndarray:
    """A NumPy array as it is; a tensor of another library as an array of the same memory."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would not be seen; fill it, or leave the masked out")
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "__dlpack__"):
        raise TypeError(f"{name} must be a NumPy array or a tensor on the CPU, not {type(value).__name__}")
    try:
        return np.from_dlpack(value)
    except Exception as error:  # each library has its own
        raise TypeError(
            f"{name} cannot be read in place ({error}); "
            "it must be a NumPy array or a tensor on the CPU without gradients"
        ) from error


def _laid_out(value: np.ndarray, name: str, dimensions: int) -> np.ndarray:
    if value.ndim != dimensions:
        raise ValueError(f"{name} must have {dimensions} dimension(s), not {value.ndim}")
    contiguous = not value.size or value.shape[-1] == 1 or value.strides[-1] == value.itemsize
    if not contiguous or not value.flags.aligned or (dimensions > 1 and value.strides[0] % value.itemsize):
        raise ValueError(f"{name} must be aligned and contiguous along its last dimension")
    return value


def _floats(value: Any, name: str, dimensions: int) -> np.ndarray:
    value = _in_place(value, name)
    if value.dtype not in (np.float64, np.float32):
        raise TypeError(f"{name} must be float64 or float32, not {value.dtype}")
    return _laid_out(value, name, dimensions)


def _exactly(value: Any, name: str, dimensions: int, dtype: type) -> np.ndarray:
    value = _in_place(value, name)
    if value.dtype != dtype:
        raise TypeError(f"{name} must be {np.dtype(dtype)}, not {value.dtype}")
    return _laid_out(value, name, dimensions)


def _whole(value: Any, name: str, least: int, most: int, most_text: str = "") -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}") from None
    if not least <= whole <= most:
        raise ValueError(f"{name} must be between {least} and {most_text or most}, not {whole}")
    return whole


def _items(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name} must be a list or a tuple, not {type(value).__name__}")
    return value


def _table(value: Any, name: str, like: np.ndarray | None = None) -> np.ndarray:
    value = _floats(value, name, 2)
    if not len(value):
        raise ValueError(f"{name} must have at least one row")
    if like is not None and value.dtype != like.dtype:
        raise TypeError(f"{name} is {value.dtype}, but table is {like.dtype}")
    if like is not None and value.shape[1] != like.shape[1]:
        raise ValueError(f"{name} has {value.shape[1]} columns, but table has {like.shape[1]}")
    return value


def _job(job: Sequence[Any], name: str, table: np.ndarray, control: Any, surface: Any) -> tuple[Any, ...]:
    if len(_items(job, name)) != 6:
        raise ValueError(f"{name} must have 6 parts, not {len(job)}")
    ranges = _ranges(job[0], f"{name}.ranges", table.shape[1])
    size = int((ranges[:, 1] - ranges[:, 0]).sum())
    rows = [
        _rows(part, f"{name}.{which}", source)
        for part, which, source in zip(
            job[1:4], ("rows", "control_rows", "surface_rows"), (table, control, surface), strict=True
        )
    ]
    k = _whole(job[4], f"{name}.k", 0, size)
    counts = _exactly(job[5], f"{name}.surface_counts", 1, np.int64).tolist()
    for count, least in zip(counts, [0, *counts], strict=False):
        if not least <= count <= size:
            raise ValueError(f"{name}.surface_counts must ascend between 0 and {size}, but hold {count}")
    if (surface is not None) != bool(counts):
        raise ValueError(f"{name}.surface_counts must hold a count with a surface table, and none without")
    return ranges, *rows, k, counts


def _rows(value: Any, name: str, table: np.ndarray | None) -> np.ndarray:
    rows = _indices(value, name, 0 if table is None else len(table), "rows")
    if table is not None and not len(rows):
        raise ValueError(f"{name} must name at least one row")
    return rows


def _indices(value: Any, name: str, bound: int, of: str) -> np.ndarray:
    value = _exactly(value, name, 1, np.int64)
    for index in value[(value < 0) | (value >= bound)][:1]:
        raise ValueError(f"{name} holds {index}, but {of} are 0 to {bound - 1}")
    return value


def _ranges(value: Any, name: str, columns: int) -> np.ndarray:
    ranges = _exactly(value, name, 2, np.int64)
    if ranges.shape[1] != 2:
        raise ValueError(f"{name} must have shape [n, 2], not [n, {ranges.shape[1]}]")
    if len(ranges) and ranges.strides[0] != 2 * ranges.itemsize:
        raise ValueError(f"{name} must be contiguous")
    passed = 0
    for i, (start, stop) in enumerate(ranges.tolist()):
        if not 0 <= start <= stop <= columns:
            raise ValueError(f"{name}[{i}] is {start} to {stop}, outside the table's columns 0 to {columns}")
        if start < passed:
            raise ValueError(f"{name}[{i}] is {start} to {stop}, but ranges must ascend and not overlap")
        passed = stop
    return ranges
