"""ScoreTable: what attribution produces and every later stage reads, and its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.files import remove_leftovers
from culnig_fast.neurons import MODULE_NAMES, NeuronLayout
from culnig_fast.tensors import map_tensor, read_facts, read_metadata, read_texts, read_value, save_tensors

FORMAT = "culnig_fast.scores/1"

ONE_RUN = (
    "model",
    "model_class",
    "dtype",
    "attention",
    "reduction",
    "padding",
    "positions",
    "control",
    "clamped",
    "score",
)
"""What the metadata of tables that are merged must agree in, where both say it."""


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of every neuron summed over a dataset, one row a group (CULNIG, section 3).

    Attributes:
        totals: float64 [groups, neurons], Σ_q P_q · s(x_q, y_q) over the samples of each group. A table loaded from
            a file is memory-mapped and read-only.
        groups: names of the rows.
        counts: int64 [groups] samples of each group.
        probability: float64 [groups] Σ_q P_q of each group.
        ids: the ids of all samples scored, in the order in which they were given.
        layout: which column is which neuron.
        metadata: JSON-ready provenance: model, options, versions.
        checkpoint: the file of progress that the table was made with; `save` removes it when the table is on disk.

    Raises:
        CulnigError: shapes disagree, or a group is named twice.
    """

    totals: np.ndarray
    groups: tuple[str, ...]
    counts: np.ndarray
    probability: np.ndarray
    ids: tuple[str, ...]
    layout: NeuronLayout
    metadata: dict[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "ids", tuple(self.ids))
        object.__setattr__(self, "counts", np.asarray(self.counts, dtype=np.int64))
        object.__setattr__(self, "probability", np.asarray(self.probability, dtype=np.float64))
        n_groups = len(self.groups)
        if self.totals.dtype != np.float64 or self.totals.shape != (n_groups, self.layout.size):
            raise CulnigError(
                f"score totals are {self.totals.dtype} {list(self.totals.shape)}, but {n_groups} groups and the "
                f"layout of {self.layout.size} neurons need float64 [{n_groups}, {self.layout.size}]"
            )
        for name, value in (("counts", self.counts), ("probability", self.probability)):
            if value.shape != (n_groups,):
                raise CulnigError(f"score table has {n_groups} groups, but its {name} have shape {list(value.shape)}")
        if len(set(self.groups)) != n_groups:
            raise CulnigError(f"score table names a group twice: {', '.join(sorted(self.groups))}")

    @property
    def n_samples(self) -> int:
        """Samples in all groups together."""
        return int(self.counts.sum())

    def group_index(self, name: str) -> int:
        """Row of the group; CulnigError, listing the groups, when there is none of that name."""
        try:
            return self.groups.index(name)
        except ValueError:
            raise CulnigError(f"no group {name!r} in the scores; there are {', '.join(self.groups)}") from None

    def row(self, name: str) -> np.ndarray:
        """Totals of one group, float64 [neurons]."""
        row: np.ndarray = self.totals[self.group_index(name)]
        return row

    def merge(self, *others: ScoreTable) -> ScoreTable:
        """One table of them all: rows of one name are added, in the order given, others stand below.

        For parts of a data set that were scored apart. The metadata keeps what all say alike, joins lists of samples,
        and holds that of each under `merged`.

        Raises:
            CulnigError: they are of different neurons, models or options, a sample is in two of them, or their rows or
                counts are not plain sums over samples (resamples, unique items).
        """
        tables = (self, *others)
        check_same_layout([(f"table {number}", table) for number, table in enumerate(tables, 1)])
        _check_mergeable(tables)
        groups = tuple(dict.fromkeys(name for table in tables for name in table.groups))
        totals = np.zeros((len(groups), self.layout.size))
        counts, probability = np.zeros(len(groups), dtype=np.int64), np.zeros(len(groups))
        for table in tables:
            rows = [groups.index(name) for name in table.groups]
            totals[rows] += table.totals
            counts[rows] += table.counts
            probability[rows] += table.probability
        ids = tuple(name for table in tables for name in table.ids)
        return ScoreTable(totals, groups, counts, probability, ids, self.layout, _merged_metadata(tables))

    def to_pandas(self, groups: Sequence[str] | None = None) -> Any:
        """A frame of one row a neuron in flat order: module_name, layer_idx, neuron_idx, and one column a group.

        Args:
            groups: which; None means all. A column is eight bytes a neuron.

        Returns:
            pandas.DataFrame; samples, Σ P of each group and the table's metadata are in its `attrs`.

        Raises:
            CulnigError: there is no such group, or one is called like a column of names.
        """
        from culnig_fast import frames

        return frames.to_pandas(*self._frame(groups))

    def to_arrow(self, groups: Sequence[str] | None = None) -> Any:
        """As `to_pandas`, a pyarrow.Table; what is in a frame's `attrs` is JSON under `culnig_fast` in its metadata."""
        from culnig_fast import frames

        return frames.to_arrow(*self._frame(groups))

    def _frame(self, groups: Sequence[str] | None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Columns, names first and then one a group, and what the table says of itself."""
        from culnig_fast.frames import NAMES

        chosen = self.groups if groups is None else tuple(groups)
        rows = [self.group_index(name) for name in chosen]
        taken = [name for name in chosen if name in NAMES]
        if taken:
            raise CulnigError(f"a group is called {taken[0]!r}, as a column of names is; choose others with `groups`")
        _, layers, columns = self.layout.locate(np.arange(self.layout.size))
        codes = [np.full(s.width, MODULE_NAMES.index(s.module_name), dtype=np.int8) for s in self.layout.sites]
        facts = {
            "counts": {name: int(self.counts[row]) for name, row in zip(chosen, rows, strict=True)},
            "probability": {name: float(self.probability[row]) for name, row in zip(chosen, rows, strict=True)},
            "metadata": self.metadata,
        }
        named = dict(zip(NAMES, (np.concatenate(codes), layers, columns), strict=True))
        return named | {name: self.totals[row] for name, row in zip(chosen, rows, strict=True)}, facts

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a safetensors file with layout, groups, ids and metadata in its header; atomic.

        Raises:
            CulnigError: the file exists and `overwrite` is false, or it cannot be written.
        """
        tensors = {"totals": self.totals, "counts": self.counts, "probability": self.probability}
        header = {
            "format": FORMAT,
            "groups": json.dumps(self.groups, ensure_ascii=False),
            "ids": json.dumps(self.ids, ensure_ascii=False),
            "layout": json.dumps(self.layout.to_dict()),
            "metadata": json.dumps(self.metadata, ensure_ascii=False, sort_keys=True),
        }
        save_tensors(path, tensors, header, overwrite)
        self.discard_checkpoint()

    def discard_checkpoint(self) -> None:
        """Remove the progress that the table was made with: it is on disk, or not wanted."""
        if self.checkpoint is not None:
            self.checkpoint.unlink(missing_ok=True)
            remove_leftovers(self.checkpoint)

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True) -> ScoreTable:
        """Memory-map a table that `save` wrote; totals are read from disk as they are used.

        Args:
            path: the file.
            verify: hold the file against its content hash, which reads it once (half a second for 500 MB); a
                file that has none loads all the same.

        Raises:
            CulnigError: the file is missing, cut off, altered, not safetensors, or not a score table.
        """
        path = Path(path)
        header = read_metadata(path, verify=verify)
        if header.get("format") != FORMAT:
            raise CulnigError(f"{path} is not a score table ({FORMAT}); write one with `culnig-fast score`")
        try:
            return cls(
                map_tensor(path, "totals", np.float64),
                read_texts(header, "groups"),
                np.array(map_tensor(path, "counts", np.int64)),
                np.array(map_tensor(path, "probability", np.float64)),
                read_texts(header, "ids"),
                NeuronLayout.from_dict(read_value(header, "layout")),
                read_facts(header),
            )
        except (OSError, ValueError) as error:
            raise CulnigError(f"{path} is a damaged score table ({error}); score again to rewrite it") from error

    def __repr__(self) -> str:
        return f"ScoreTable({self.n_samples:,} samples, groups {', '.join(self.groups)}; {self.layout!r})"


def check_same_layout(tables: Sequence[tuple[str, ScoreTable]]) -> None:
    """Raise CulnigError, naming the first difference, unless all named tables have one layout."""
    first_name, first = tables[0]
    for name, table in tables[1:]:
        difference = first.layout.difference(table.layout)
        if difference:
            raise CulnigError(
                f"the {first_name} and {name} scores are of different neurons ({difference}); "
                "score both with the same model and sites"
            )


def _check_mergeable(tables: Sequence[ScoreTable]) -> None:
    """Raise CulnigError unless the tables are of one model, scored alike, and of different samples."""
    place: dict[str, int] = {}
    for number, table in enumerate(tables, 1):
        for kind, what in (("resamples", "rows are resamples"), ("as_authors", "counts are of unique items")):
            if table.metadata.get(kind):
                raise CulnigError(f"table {number}'s {what}, which do not add up over parts; score the whole at once")
        for name in ONE_RUN:
            one, other = tables[0].metadata.get(name), table.metadata.get(name)
            if one is not None and other is not None and one != other:
                raise CulnigError(f"table 1's {name} is {one!r}, table {number}'s {other!r}; score all parts alike")
        for name in table.ids:
            if place.setdefault(name, number) != number:
                raise CulnigError(
                    f"sample {name!r} is in tables {place[name]} and {number}, and would count twice; merge parts that "
                    "share none"
                )


def _merged_metadata(tables: Sequence[ScoreTable]) -> dict[str, Any]:
    facts = [table.metadata for table in tables]
    merged = {key: value for key, value in facts[0].items() if all(one.get(key) == value for one in facts)}
    for key in ("unusable", "underflow"):
        if any(key in one for one in facts):
            merged[key] = [name for one in facts for name in one.get(key, ())]
    return {**merged, "halvings": sum(one.get("halvings", 0) for one in facts), "merged": facts}
