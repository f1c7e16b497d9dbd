"""Difficult numbers, arguments made of them, and what comes of a call: for the tests of the core and its twin."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

INF = math.inf
TINY = 5e-324
SPECIAL = [0.0, -0.0, 1.0, -1.0, INF, -INF, TINY, -TINY, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1]
NUMBERS = st.one_of(st.sampled_from(SPECIAL), st.floats(allow_nan=False))
FEW = st.sampled_from([0.0, -0.0, 1.0, TINY])
NO_ROWS = np.zeros(0, np.int64)


def outcome(function: Any, *arguments: Any) -> tuple[Any, ...]:
    """Bits, or the error's type and text."""
    try:
        result = function(*arguments)
    except (TypeError, ValueError) as error:
        return type(error), str(error)
    # The sign of a NaN that an operation makes is the processor's choice.
    if isinstance(result, list):
        return tuple(part.tobytes() for job in result for part in job)
    result = np.where(np.isnan(result), np.nan, result) if result.dtype == np.float64 else result
    return result.dtype, result.shape, result.tobytes()


@st.composite
def sweeps(draw: st.DrawFn) -> tuple[Any, ...]:
    """Arguments of `candidates`: small tables of difficult numbers, and jobs on them."""
    columns = draw(st.integers(0, 40))
    dtype = draw(st.sampled_from([np.float64, np.float32]))
    cells = st.one_of(NUMBERS, FEW) if draw(st.booleans()) else FEW
    tables = []
    for _ in range(3):
        shape = (draw(st.integers(1, 11)), columns)
        flat = draw(st.lists(cells, min_size=1, max_size=60))
        with np.errstate(over="ignore"):
            tables.append(np.resize(np.array(flat), shape).astype(dtype))
    control, surface = (one if draw(st.booleans()) else None for one in tables[1:])
    jobs = []
    for _ in range(draw(st.integers(0, 3))):
        ends = sorted(draw(st.lists(st.integers(0, columns), min_size=0, max_size=6)))
        ranges = np.array(ends[: len(ends) // 2 * 2], dtype=np.int64).reshape(-1, 2)
        size = int((ranges[:, 1] - ranges[:, 0]).sum())
        rows = [
            np.array([] if t is None else draw(st.lists(st.integers(0, len(t) - 1), min_size=1)), dtype=np.int64)
            for t in (tables[0], control, surface)
        ]
        counts = [] if surface is None else sorted(draw(st.lists(st.integers(0, size), min_size=1, max_size=3)))
        jobs.append((ranges, *rows, draw(st.integers(0, size)), np.array(counts, dtype=np.int64)))
    samples = draw(st.integers(1, 2**53)), draw(st.integers(1, 7))
    return tables[0], samples[0], control, samples[1], surface, jobs
