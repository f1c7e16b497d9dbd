"""Rankings of neurons by score: arrays in, flat indices out; no tables, files or models.

The numeric work is in `culnig_fast._selection` (csrc/), or, where that was not built, in its slower NumPy
twin with the same results to the last bit. Every ranking is a stable descending sort: equal scores keep flat
order.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from culnig_fast.errors import CulnigError


@functools.cache
def core() -> ModuleType:
    """The C++ core, or its NumPy twin, with one warning, where the core was not built."""
    try:
        return importlib.import_module("culnig_fast._selection")
    except ImportError as error:
        warnings.warn(
            f"culnig_fast was installed without its C++ core ({error}); its slower NumPy twin selects, "
            "with the same results. Install again with a C++17 compiler to have the core",
            RuntimeWarning,
            stacklevel=2,
        )
        return importlib.import_module("culnig_fast._selection_numpy")


def implementation() -> str:
    """What selects: "C++", or "NumPy" where the extension was not built."""
    return "C++" if core().__name__ == "culnig_fast._selection" else "NumPy"


@dataclass(frozen=True)
class Source:
    """Scores of one kind: the rows to be summed and the number of samples to divide by.

    Attributes:
        name: what errors call it.
        totals: float64 [rows, neurons].
        samples: N of the whole table, also where `totals` is one country's row.
    """

    name: str
    totals: np.ndarray
    samples: int


class NotANumberError(Exception):
    """A score is NaN, or infinite where that is of no use.

    Attributes:
        source: name of the scores.
        flat: the neuron.
    """

    def __init__(self, source: str, flat: int) -> None:
        super().__init__(f"NaN in the {source} scores of neuron {flat}")
        self.source = source
        self.flat = flat


def top_count(size: int, share: float, name: str = "share") -> int:
    """int(size · share), the count that the published program takes; CulnigError unless 0 ≤ share ≤ 1."""
    if isinstance(share, bool) or not isinstance(share, int | float | np.number) or not 0 <= share <= 1:
        raise CulnigError(f"{name} must be a part between 0 and 1, not {share!r}; 0.01 is 1 %")
    return int(size * float(share))


def rank(minuend: Source, subtrahend: Source | None, ranges: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` neurons of a pool with the largest Σ minuend / N − Σ subtrahend / N, best first.

    Args:
        ranges: int64 [m, 2] flat indices start ≤ i < stop of the pool, ascending.
        count: at most the size of the pool.

    Returns:
        Flat indices int64 [count] and their scores float64 [count].

    Raises:
        NotANumberError: a score of the pool is NaN.
    """
    table = _fit(minuend.totals)
    control = None if subtrahend is None else _fit(subtrahend.totals)
    control_samples = 1 if subtrahend is None else subtrahend.samples
    difference = core().mean_difference(table, minuend.samples, control, control_samples, ranges)
    try:
        positions = core().top_k(difference, count)
    except ValueError:
        missing = np.flatnonzero(np.isnan(difference))
        if not missing.size:
            raise
        raise _not_a_number(minuend, subtrahend, int(pool_flat(ranges, missing[:1])[0])) from None
    return pool_flat(ranges, positions), difference[positions]


def group_z(
    minuend: Source, subtrahend: Source | None, subtrahend_rows: list[int], flat: np.ndarray, row: int
) -> np.ndarray:
    """z of row `row` of minuend / N − subtrahend / N among all rows, float64 [n], at the neurons `flat` [n].

    Population standard deviation; deviation 0 gives z = 0. `subtrahend_rows` holds the row of each group of
    `minuend`.

    Raises:
        NotANumberError: a score is NaN or infinite.
    """
    difference = np.take(minuend.totals, flat, axis=1) / minuend.samples
    if subtrahend is not None:
        with np.errstate(invalid="ignore"):
            control = np.take(subtrahend.totals, flat, axis=1)[subtrahend_rows]
            difference = difference - control / subtrahend.samples
    try:
        z: np.ndarray = core().z_scores(_fit(difference), row)
    except ValueError:
        unfit = np.flatnonzero(~np.isfinite(difference).all(axis=0))
        if not unfit.size:
            raise
        raise _not_a_number(minuend, subtrahend, int(flat[unfit[0]])) from None
    return z


def draw(size: int, count: int, seed: int) -> np.ndarray:
    """`count` of 0…size−1, uniform without replacement, int64 [count] in drawn order, from PCG64(seed)."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return generator.choice(size, count, replace=False).astype(np.int64)


def pool_size(ranges: np.ndarray) -> int:
    """How many neurons lie in `ranges` int64 [m, 2]."""
    return int((ranges[:, 1] - ranges[:, 0]).sum())


def pool_flat(ranges: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Flat indices, int64 [n], of positions [n] counted through `ranges` int64 [m, 2] one after the other."""
    lengths = ranges[:, 1] - ranges[:, 0]
    ends = np.cumsum(lengths)
    where = np.searchsorted(ends, positions, side="right")
    flat: np.ndarray = ranges[where, 0] + positions - (ends - lengths)[where]
    return flat


def _fit(totals: np.ndarray) -> np.ndarray:
    """As the core reads it: unchanged, memory-mapped ones too, unless strided or misaligned."""
    return np.require(totals, dtype=np.float64, requirements=["C", "A"])


def _not_a_number(minuend: Source, subtrahend: Source | None, flat: int) -> NotANumberError:
    """Blame the first source that holds a NaN or an infinity at the neuron."""
    for source in (minuend, subtrahend):
        if source is not None and not np.isfinite(source.totals[:, flat]).all():
            return NotANumberError(source.name, flat)
    return NotANumberError(minuend.name, flat)
