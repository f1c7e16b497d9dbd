"""Rankings where the tables are: torch operations for tensors on a GPU, with the core's sets, order and scores.

Only candidates leave the device: their indices and differences, and for z the columns that they lie in. The
functions have the signatures of `_selection_numpy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from culnig_fast.errors import CulnigError
from culnig_fast.neurons import NeuronLayout
from culnig_fast.selection.core import core


@dataclass(frozen=True, eq=False)
class DeviceTable:
    """What selection reads of a ScoreTable, its totals still a torch tensor, such as `Attributor.totals`.

    Attributes:
        totals: float64 or float32 [groups, neurons], on any device.
        groups: names of the rows.
        counts: int64 [groups] samples of each group.
        layout: which column is which neuron.
        metadata: JSON-ready provenance.

    Raises:
        CulnigError: shapes disagree, or a group is named twice.
    """

    totals: torch.Tensor
    groups: tuple[str, ...]
    counts: np.ndarray
    layout: NeuronLayout
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "counts", np.asarray(self.counts, dtype=np.int64))
        expected = (len(self.groups), self.layout.size)
        if self.totals.dtype not in (torch.float64, torch.float32) or tuple(self.totals.shape) != expected:
            raise CulnigError(
                f"score totals are {self.totals.dtype} {list(self.totals.shape)}, but {expected[0]} groups and the "
                f"layout of {expected[1]} neurons need float64 or float32 {list(expected)}"
            )
        if self.counts.shape != expected[:1]:
            raise CulnigError(f"score table has {expected[0]} groups, but {self.counts.shape} counts")
        if len(set(self.groups)) != len(self.groups):
            raise CulnigError(f"score table names a group twice: {', '.join(sorted(self.groups))}")

    @property
    def n_samples(self) -> int:
        """Samples in all groups together."""
        return int(self.counts.sum())


def candidates(
    table: torch.Tensor,
    samples: int,
    control: torch.Tensor | None,
    control_samples: int,
    surface: torch.Tensor | None,
    jobs: Sequence[Sequence[Any]],
    threads: int = 0,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """As `_selection_numpy.candidates`, on the tensors' device, which decides about threads."""
    found = []
    for j, (ranges, rows, control_rows, surface_rows, k, counts) in enumerate(jobs):
        pool = _pool(ranges, table.device)
        difference = _divide(_sum_rows(table, rows, pool), samples)
        if control is not None:
            difference -= _divide(_sum_rows(control, control_rows, pool), control_samples)
        best = _top(difference, k, pool, j, "difference")
        classes = torch.full((k,), len(counts), dtype=torch.int64, device=table.device)
        if surface is not None:
            order = _top(_sum_rows(surface, surface_rows, pool), int(counts[-1]), pool, j, "surface")
            for c in reversed(range(len(counts))):
                classes[torch.isin(best, order[: int(counts[c])])] = c
        found.append(tuple(t.cpu().numpy() for t in (pool[best], difference[best], classes)))
    return found  # type: ignore[return-value]  # three each


def group_z(
    table: torch.Tensor,
    samples: int,
    control: torch.Tensor | None,
    control_samples: int,
    control_rows: np.ndarray,
    columns: np.ndarray,
    rows: np.ndarray,
    threads: int = 0,
) -> np.ndarray:
    """As `_selection_numpy.group_z`; the columns are gathered on the device, and z is formed by the core."""
    at = torch.as_tensor(columns, device=table.device)
    values = table[:, at].cpu().numpy()
    other = None
    if control is not None:
        paired = torch.as_tensor(control_rows, device=table.device)
        other = control[:, at][paired].cpu().numpy()
    own, here = np.arange(len(values)), np.arange(len(columns))
    z: np.ndarray = core().group_z(values, samples, other, control_samples, own, here, rows, threads)
    return z


def _pool(ranges: np.ndarray, device: torch.device) -> torch.Tensor:
    pieces = [torch.arange(start, stop, device=device) for start, stop in ranges.tolist()]
    return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int64, device=device)


def _sum_rows(table: torch.Tensor, rows: np.ndarray, pool: torch.Tensor) -> torch.Tensor:
    """In row order, one rounding each; torch.sum leaves its order open."""
    first, *others = rows.tolist()
    total = table[first].index_select(0, pool).double()
    for row in others:
        total += table[row].index_select(0, pool).double()
    return total


def _divide(values: torch.Tensor, count: int) -> torch.Tensor:
    # By a tensor on the device: CUDA multiplies by the reciprocal of a Python number, which rounds twice.
    return values / torch.full((1,), count, dtype=torch.float64, device=values.device)


def _top(values: torch.Tensor, k: int, pool: torch.Tensor, job: int, of: str) -> torch.Tensor:
    """Positions, int64 [k], of the largest, as a stable descending sort has them; torch.topk leaves ties open."""
    missing = torch.isnan(values)
    if bool(missing.any()):
        column = int(pool[missing.nonzero()[0, 0]])
        error = ValueError(f"the {of} of jobs[{job}] is NaN at column {column}")
        error.__dict__.update(job=job, of=of, column=column)
        raise error
    if k == 0:
        return torch.zeros(0, dtype=torch.int64, device=values.device)
    values = values + 0.0  # -0 becomes +0: a radix sort would rank it below
    least = torch.topk(values, k, sorted=False).values.min()
    above = (values > least).nonzero()[:, 0]
    equal = (values == least).nonzero()[: k - len(above), 0]
    chosen = torch.cat([above, equal]).sort().values
    return chosen[torch.sort(values[chosen], descending=True, stable=True).indices]
