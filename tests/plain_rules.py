"""Reductions over positions as plain NumPy, and how close scores must come to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

RULES: dict[str, Callable[[list[np.ndarray]], np.ndarray]] = {
    "max": np.maximum.reduce,
    "sum": lambda rows: np.sum(rows, axis=0),
    "mean": lambda rows: np.sum(rows, axis=0) / len(rows),
    "absmax": lambda rows: np.maximum.reduce([np.abs(row) for row in rows]),
    "last": lambda rows: rows[-1],
}


def assert_close(got: Any, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
