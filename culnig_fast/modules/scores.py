"""ModuleScores: scores of any module's neurons, summed per group, and their file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.files import json_text
from culnig_fast.modules.neurons import ModuleNeurons
from culnig_fast.modules.sites import SIDES, ModuleLayout
from culnig_fast.tensors import map_tensor, read_facts, read_metadata, read_texts, read_value, save_tensors

FORMAT = "culnig_fast.module_scores/1"
NAMES = ("path", "side", "column")


@dataclass(frozen=True, eq=False)
class ModuleScores:
    """Scores of every neuron of some modules' sites, one row a group; what `ModuleAttributor.table` gives.

    Attributes:
        totals: float64 [groups, neurons]. Those of a table loaded from a file are memory-mapped and read-only.
        layout: which column is which neuron.
        groups: names of the rows.
        counts: float64 [groups] samples of each group, as often as they counted there.
        objective: what was scored, in the caller's words.
        reduction: over positions.
        metadata: JSON-ready provenance.

    Raises:
        CulnigError: shapes disagree, or a group is named twice.
    """

    totals: np.ndarray
    layout: ModuleLayout
    groups: tuple[str, ...]
    counts: np.ndarray
    objective: str = ""
    reduction: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "counts", np.asarray(self.counts, dtype=np.float64))
        n = len(self.groups)
        if self.totals.dtype != np.float64 or self.totals.shape != (n, self.layout.size):
            raise CulnigError(
                f"score totals are {self.totals.dtype} {list(self.totals.shape)}, but {n} groups and the layout of "
                f"{self.layout.size} neurons need float64 [{n}, {self.layout.size}]"
            )
        if self.counts.shape != (n,):
            raise CulnigError(f"the table has {n} groups, but its counts have shape {list(self.counts.shape)}")
        if len(set(self.groups)) != n:
            raise CulnigError(f"the table names a group twice: {', '.join(sorted(self.groups))}")

    def group_index(self, name: str) -> int:
        """Row of the group; CulnigError, listing the groups, when there is none of that name."""
        if name not in self.groups:
            raise CulnigError(f"no group {name!r} in the scores; there are {', '.join(self.groups)}")
        return self.groups.index(name)

    def row(self, group: str | None = None) -> np.ndarray:
        """float64 [neurons] of one group, or the sum of all when None."""
        row: np.ndarray = self.totals.sum(0) if group is None else self.totals[self.group_index(group)]
        return row

    def by_path(self) -> dict[str, np.ndarray]:
        """Path → float64 [groups, columns], views; a path scored in parts stands with their columns in brackets."""
        return {name: self.totals[:, where] for name, where in self.layout.by_path().items()}

    def at(self, neurons: ModuleNeurons) -> np.ndarray:
        """float64 [groups, n] of the set's neurons, in its order; CulnigError for one that is not scored."""
        found: np.ndarray = self.totals[:, neurons.flat(self.layout)]
        return found

    def neurons(self, flat: Any, group: str | None = None) -> ModuleNeurons:
        """The set of flat indices [n], which are the rows of `to_pandas()`, with their scores.

        Args:
            flat: in the order of the set.
            group: whose scores; None sums all.

        Raises:
            CulnigError: an index outside, or no such group.
        """
        flat = np.atleast_1d(np.asarray(flat, dtype=np.int64))
        self.layout.site_of(flat)  # refuses what is outside; numpy would count from the end
        return ModuleNeurons.from_flat(self.layout, flat, self.row(group)[flat], self._facts(group))

    def top(self, k: int, group: str | None = None, *, absolute: bool = False) -> ModuleNeurons:
        """The k neurons of the highest scores, best first; of equal ones the first in the layout.

        Args:
            k: how many.
            group: of which; None sums all.
            absolute: rank by the absolute value.

        Raises:
            CulnigError: there are not that many, or a score is NaN.
        """
        if not 1 <= k <= self.layout.size:
            raise CulnigError(f"cannot take the top {k} of {self.layout.size} neurons; choose 1…{self.layout.size}")
        row = self._ranked(group, absolute)
        return self.neurons(np.argsort(-row, kind="stable")[:k], group)

    def above(self, threshold: float, group: str | None = None, *, absolute: bool = False) -> ModuleNeurons:
        """The neurons whose score is above the threshold, best first; arguments and errors as for `top`."""
        row = self._ranked(group, absolute)
        order = np.argsort(-row, kind="stable")
        return self.neurons(order[: np.count_nonzero(row > threshold)], group)

    def merge(self, *others: ModuleScores) -> ModuleScores:
        """One table of them all: rows of one name are added, in the order given, others stand below.

        For parts of a data set that were scored apart, and for groups that were.

        Raises:
            CulnigError: they are of different neurons, objectives or reductions.
        """
        tables = (self, *others)
        for table in others:
            difference = self.layout.difference(table.layout)
            if difference:
                raise CulnigError(f"the tables are of different neurons ({difference}); score both at the same sites")
            for name in ("objective", "reduction"):
                mine, other = getattr(self, name), getattr(table, name)
                if mine != other:
                    raise CulnigError(f"one table's {name} is {mine!r}, the other's {other!r}; they do not add up")
        groups = tuple(dict.fromkeys(name for table in tables for name in table.groups))
        totals, counts = np.zeros((len(groups), self.layout.size)), np.zeros(len(groups))
        for table in tables:
            rows = [groups.index(name) for name in table.groups]
            totals[rows] += table.totals
            counts[rows] += table.counts
        facts = [table.metadata for table in tables]
        metadata = facts[0] if all(one == facts[0] for one in facts) else {"merged": facts}
        return ModuleScores(totals, self.layout, groups, counts, self.objective, self.reduction, metadata)

    def to_pandas(self, groups: Sequence[str] | None = None) -> Any:
        """A frame of one row a neuron in flat order: path, side, column, and one column a group.

        Args:
            groups: which; None means all.

        Returns:
            pandas.DataFrame; counts, objective, reduction and metadata are in its `attrs`.

        Raises:
            CulnigError: there is no such group, or one is called like a column of names.
        """
        from culnig_fast import frames

        return frames.to_pandas(*self._frame(groups))

    def to_arrow(self, groups: Sequence[str] | None = None) -> Any:
        """As `to_pandas`, a pyarrow.Table; what is in a frame's `attrs` is JSON under `culnig_fast` in its metadata."""
        from culnig_fast import frames

        return frames.to_arrow(*self._frame(groups))

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a safetensors file with layout, groups and metadata in its header, and a content hash; atomic.

        Raises:
            CulnigError: the file exists and `overwrite` is false, it cannot be written, or JSON cannot hold metadata.
        """
        header = {
            "format": FORMAT,
            "groups": json_text(self.groups, "the table's groups"),
            "layout": json.dumps(self.layout.to_dict()),
            "objective": json_text(self.objective, "the table's objective"),
            "reduction": json_text(self.reduction, "the table's reduction"),
            "metadata": json_text(self.metadata, "the table's metadata"),
        }
        save_tensors(path, {"totals": self.totals, "counts": self.counts}, header, overwrite)

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> ModuleScores:
        """Memory-map a table that `save` wrote; totals are read from disk as they are used.

        Args:
            path: the file.
            verify: hold the file against its content hash, which reads it once.

        Raises:
            CulnigError: the file is missing, cut off, altered, not safetensors, or no such table.
        """
        path = Path(path)
        header = read_metadata(path, verify=verify)
        if header.get("format") != FORMAT:
            raise CulnigError(f"{path} is not a table of module scores ({FORMAT}); write one with ModuleScores.save")
        try:
            objective, reduction = read_value(header, "objective"), read_value(header, "reduction")
            if not isinstance(objective, str) or not isinstance(reduction, str):
                raise CulnigError("its objective or reduction is no text")
            return cls(
                map_tensor(path, "totals", np.float64),
                ModuleLayout.from_dict(read_value(header, "layout")),
                read_texts(header, "groups"),
                np.array(map_tensor(path, "counts", np.float64)),
                objective,
                reduction,
                read_facts(header),
            )
        except (OSError, ValueError) as error:
            raise CulnigError(f"{path} is a damaged table of module scores ({error}); score again") from error

    def _facts(self, group: str | None) -> dict[str, Any]:
        facts = {"objective": self.objective, "reduction": self.reduction, "group": group}
        return {name: value for name, value in facts.items() if value}

    def _ranked(self, group: str | None, absolute: bool) -> np.ndarray:
        """Scores to rank by, float64 [neurons]."""
        row = self.row(group)
        if np.isnan(row).any():
            path, column = (found[0] for found in self.layout.locate(int(np.flatnonzero(np.isnan(row))[0])))
            raise CulnigError(f"the score of column {column} of {path!r} is NaN, which has no rank; score in float32")
        return np.abs(row) if absolute else row

    def _frame(
        self, groups: Sequence[str] | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Sequence[str]]]:
        chosen = self.groups if groups is None else tuple(groups)
        rows = [self.group_index(name) for name in chosen]
        taken = [name for name in chosen if name in NAMES]
        if taken:
            raise CulnigError(f"a group is called {taken[0]!r}, as a column of names is; choose others with `groups`")
        flat = np.arange(self.layout.size)
        site, (_, columns) = self.layout.site_of(flat), self.layout.locate(flat)
        paths = list(dict.fromkeys(one.path for one in self.layout.sites))
        number = {path: i for i, path in enumerate(paths)}
        path_of = np.array([number[one.path] for one in self.layout.sites], dtype=np.int32)
        side_of = np.array([SIDES.index(one.side) for one in self.layout.sites], dtype=np.int8)
        named = dict(zip(NAMES, (path_of[site], side_of[site], columns), strict=True))
        facts = {
            "counts": {name: float(self.counts[row]) for name, row in zip(chosen, rows, strict=True)},
            "objective": self.objective,
            "reduction": self.reduction,
            "metadata": self.metadata,
        }
        values = {name: self.totals[row] for name, row in zip(chosen, rows, strict=True)}
        return named | values, facts, {"path": paths, "side": SIDES}

    def __repr__(self) -> str:
        return f"ModuleScores({len(self.groups)} groups; {self.layout!r})"
