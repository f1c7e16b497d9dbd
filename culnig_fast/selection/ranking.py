"""Rankings of neurons by score: arrays in, flat indices out; no score tables, files or models.

The numeric work is in `culnig_fast._selection` (csrc/), or, where that was not built, in its slower NumPy
twin with the same results to the last bit. Every ranking is a stable descending sort: equal scores keep flat
order.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.selection.core import core


@dataclass(frozen=True)
class Source:
    """Scores of one kind: rows to be summed and the number of samples to divide by.

    Attributes:
        name: what errors call it.
        totals: float64 [groups, neurons], a NumPy array or a torch tensor; on a device it is ranked there.
        samples: N of the whole table.
    """

    name: str
    totals: Any
    samples: int


class Job(NamedTuple):
    """One pool to rank.

    Attributes:
        ranges: int64 [m, 2] flat indices start ≤ i < stop of the pool, ascending.
        rows, control_rows, surface_rows: int64, the rows of each source that are summed.
        k: how many candidates, at most the size of the pool.
        surface_counts: int64, ascending, of which each is a top of the surface scores; none without surface.
    """

    ranges: np.ndarray
    rows: np.ndarray
    control_rows: np.ndarray
    surface_rows: np.ndarray
    k: int
    surface_counts: np.ndarray


class Candidates(NamedTuple):
    """The candidates of one pool, best first.

    Attributes:
        flat: int64 [n].
        scores: float64 [n].
        surface_class: int64 [n], how many of the job's surface counts are too small to have the neuron in
            that top; with the number of counts it is in none of them.
    """

    flat: np.ndarray
    scores: np.ndarray
    surface_class: np.ndarray


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


def candidates(
    minuend: Source, subtrahend: Source | None, surface: Source | None, jobs: Sequence[Job]
) -> list[Candidates]:
    """For each job the neurons with the largest Σ minuend / N − Σ subtrahend / N, all jobs in one sweep.

    Raises:
        NotANumberError: a score of a pool is NaN.
    """
    try:
        found = _core_of(minuend).candidates(*_pair(minuend, subtrahend), _totals(surface), jobs)
    except ValueError as error:
        column, of = getattr(error, "column", None), getattr(error, "of", None)
        if column is None:
            raise
        if of == "surface" and surface is not None:
            raise NotANumberError(surface.name, column) from None
        raise _not_a_number(minuend, subtrahend, column) from None
    return [Candidates(*one) for one in found]


def rank(minuend: Source, subtrahend: Source | None, ranges: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` neurons of a pool with the largest Σ minuend / N − Σ subtrahend / N, best first.

    Returns:
        Flat indices int64 [count] and their scores float64 [count].

    Raises:
        NotANumberError: a score of the pool is NaN.
    """
    none, rows = np.zeros(0, np.int64), np.arange(len(minuend.totals))
    other = none if subtrahend is None else np.arange(len(subtrahend.totals))
    (found,) = candidates(minuend, subtrahend, None, [Job(ranges, rows, other, none, count, none)])
    return found.flat, found.scores


def group_z(
    minuend: Source, subtrahend: Source | None, subtrahend_rows: Sequence[int], flat: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """z of minuend / N − subtrahend / N among all rows, float64 [n], at rows [n] and neurons `flat` [n].

    Population standard deviation; deviation 0 gives z = 0. `subtrahend_rows` holds the row of each group of
    `minuend`.

    Raises:
        NotANumberError: a score is NaN or infinite.
    """
    pairing = np.asarray(subtrahend_rows, dtype=np.int64)
    try:
        z: np.ndarray = _core_of(minuend).group_z(*_pair(minuend, subtrahend), pairing, flat, rows)
    except ValueError:
        for column in flat.tolist():
            sources = [source for source in (minuend, subtrahend) if source is not None]
            if not all(_finite(source, column) for source in sources):
                raise _not_a_number(minuend, subtrahend, column) from None
        raise
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


def _core_of(source: Source) -> Any:
    """What ranks this source: torch where a tensor lies on a device, else the core."""
    if isinstance(source.totals, np.ndarray) or source.totals.device.type == "cpu":
        return core()
    return importlib.import_module("culnig_fast.selection.device")


def _pair(minuend: Source, subtrahend: Source | None) -> tuple[Any, int, Any, int]:
    samples = 1 if subtrahend is None else subtrahend.samples
    return _totals(minuend), minuend.samples, _totals(subtrahend), samples


def _totals(source: Source | None) -> Any:
    """As the core reads it: unchanged, memory-mapped ones too, unless strided or misaligned."""
    if source is None or not isinstance(source.totals, np.ndarray):
        return None if source is None else source.totals.detach().contiguous()
    return np.require(source.totals, requirements=["C", "A"])


def _finite(source: Source, flat: int) -> bool:
    column = source.totals[:, flat]
    return bool(np.isfinite(column if isinstance(column, np.ndarray) else column.cpu().numpy()).all())


def _not_a_number(minuend: Source, subtrahend: Source | None, flat: int) -> NotANumberError:
    """Blame the first source that holds a NaN or an infinity at the neuron."""
    for source in (minuend, subtrahend):
        if source is not None and not _finite(source, flat):
            return NotANumberError(source.name, flat)
    return NotANumberError(minuend.name, flat)
