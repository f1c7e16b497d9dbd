"""Score files of the published program, read and written as streams.

Its layout, which is what is written (all but the neurons is small; real files have gigabytes):

    {"neuron_scores": {"mlp.gate_proj_0_17": {"China": 0.25, …}, …},      module_layer_column → country → Σ_q P_q·s
     "total_probabilities_per_country": {"China": 310.2, …},              Σ_q P_q
     "dataset_ids": {"blend": ["…", …]}}                                  the dataset's unique ids

Also read: `{module: {layer: {column: score}}}`, with a number or `{group: score}` as the score; and a list of records
`{"module_name", "layer_idx", "neuron_idx"}` with `attribute_score` (one number) or `scores` (`{group: score}`).
A bare number belongs to the group "all". A name that ends in `.gz` is compressed.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.files import atomic_write
from culnig_fast.interop.dataset_names import base_ids, dataset_name
from culnig_fast.interop.score_events import Neuron, read_events
from culnig_fast.neurons import NeuronLayout, NeuronSite
from culnig_fast.scores import ScoreTable

_CHUNK = 4096
"""Neurons whose text is in memory at a time."""


def read_score_file(path: str | Path) -> ScoreTable:
    """Read a score file; memory holds the table (8 bytes a score), whatever the file's size.

    The file tells how many ids there are, not how many of each country, so the counts of the groups are those ids
    spread as evenly as can be: their sum, which is all that selection divides by, is the published program's N.

    Raises:
        CulnigError: not such a file, cut off, a neuron listed twice or missing, or groups that differ between neurons.
    """
    path = Path(path)
    sites = _Sites(path)
    with _opened(path) as file:
        reader = read_events(file, path, sites.add)
    if not sites.groups:
        raise CulnigError(f"{path} holds no neuron scores; is it a score file of the published program?")
    layout, totals = sites.assemble()
    ids = tuple(name for names in reader.ids.values() for name in names)
    n_groups = len(sites.groups)
    counts = np.full(n_groups, len(ids) // n_groups) + (np.arange(n_groups) < len(ids) % n_groups)
    missing = set(sites.groups) - set(reader.probability)
    if reader.probability and missing:
        raise CulnigError(f"{path} gives no total probability for {sorted(missing)[0]!r}; was it merged by hand?")
    metadata = {
        "origin": "score file of the published program",
        "datasets": {name: len(names) for name, names in reader.ids.items()},
        "counts": "unique ids, spread evenly over the groups: the file holds only their number",
    }
    probability = np.array([reader.probability.get(name, 0.0) for name in sites.groups])
    return ScoreTable(totals, sites.groups, counts, probability, ids, layout, metadata)


def write_score_file(
    table: ScoreTable, path: str | Path, *, dataset: str | None = None, overwrite: bool = False
) -> None:
    """Write a score file, a few thousand neurons at a time; what the published program reads, to the last bit.

    Args:
        table: scores.
        path: the file; with `.gz`, compressed.
        dataset: name that the ids are listed under; None means the published program's name for the table's task
            (`blend`, `blendcontrol`, `countryrc`, …), or the names that the table was read with.
        overwrite: replace an existing file.

    Raises:
        CulnigError: the file exists, cannot be written, scores are not finite, or the dataset's name is unknown.
    """
    path = Path(path)
    datasets = _datasets(table, dataset)
    with atomic_write(path, overwrite) as temporary, _written(temporary, path) as file:
        file.write('{\n    "neuron_scores": {')
        separator = "\n"
        for site in table.layout.sites:
            where = table.layout.slice(site.module_name, site.layer_idx)
            for first in range(where.start, where.stop, _CHUNK):
                values = np.asarray(table.totals[:, first : min(first + _CHUNK, where.stop)]).T
                if not np.isfinite(values).all():
                    raise CulnigError(f"scores of {site.module_name} in layer {site.layer_idx} are not finite")
                names = [f"{site.module_name}_{site.layer_idx}_{first - where.start + i}" for i in range(len(values))]
                file.write(separator + _neurons_text(names, table.groups, values))
                separator = ",\n"
        file.write('\n    },\n    "total_probabilities_per_country": ')
        file.write(_indented(dict(zip(table.groups, table.probability.tolist(), strict=True))))
        file.write(f',\n    "dataset_ids": {_indented(datasets)}\n}}')


def _datasets(table: ScoreTable, dataset: str | None) -> dict[str, Sequence[str]]:
    known = table.metadata.get("datasets")
    if dataset is None and isinstance(known, dict) and all(type(n) is int and n >= 0 for n in known.values()) and known:
        datasets: dict[str, Sequence[str]] = {}
        start = 0
        for name, count in known.items():
            datasets[name] = table.ids[start : start + count]
            start += count
        return datasets
    name = dataset_name(table) if dataset is None else dataset
    task = table.metadata.get("task")
    return {name: base_ids(task if isinstance(task, str) else None, table.ids)}


def _neurons_text(names: Sequence[str], groups: Sequence[str], values: np.ndarray) -> str:
    keys = [f"            {json.dumps(group)}: " for group in groups]
    parts = []
    for name, row in zip(names, values.tolist(), strict=True):
        inner = ",\n".join([f"{key}{value!r}" for key, value in zip(keys, row, strict=True)])
        parts.append(f'        "{name}": {{\n{inner}\n        }}')
    return ",\n".join(parts)


def _indented(value: Any) -> str:
    return json.dumps(value, indent=4, allow_nan=False).replace("\n", "\n    ")


@contextlib.contextmanager
def _written(temporary: Path, path: Path) -> Iterator[IO[str]]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(temporary, "wt", encoding="utf-8", newline="\n") as file:
        yield file


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise CulnigError(f"cannot read {path} ({error}); check the path, or was it cut off?") from error


class _Sites:
    """Scores of each site in the order in which the file lists its neurons."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.groups: tuple[str, ...] = ()
        self._columns: dict[tuple[str, int], array[int]] = {}
        self._values: dict[tuple[str, int], array[float]] = {}

    def add(self, neuron: Neuron, scores: dict[str, float]) -> None:
        """Take one neuron's scores."""
        module, layer, column = neuron
        key = (module, layer)
        if not scores:
            raise CulnigError(f"{self.path}: neuron {column} of {module} in layer {layer} has no score")
        if not self.groups:
            self.groups = tuple(scores)
        if key not in self._columns:
            self._columns[key], self._values[key] = array("q"), array("d")
        if len(scores) != len(self.groups) or any(name not in scores for name in self.groups):
            odd = sorted(set(scores) ^ set(self.groups)) or ["?"]
            raise CulnigError(
                f"{self.path}: neuron {column} of {module} in layer {layer} and the first one differ in group "
                f"{odd[0]!r}; all neurons need the same groups"
            )
        self._columns[key].append(column)
        self._values[key].extend([scores[name] for name in self.groups])

    def assemble(self) -> tuple[NeuronLayout, np.ndarray]:
        """The layout and float64 [groups, neurons]; every column of a site must be there once."""
        layout = NeuronLayout([NeuronSite(m, layer, len(c)) for (m, layer), c in self._columns.items()])
        totals = np.empty((len(self.groups), layout.size))
        for (module, layer), columns in self._columns.items():
            order = np.frombuffer(columns, dtype=np.int64)
            if not np.array_equal(np.sort(order), np.arange(len(order))):
                seen = np.bincount(order[(order >= 0) & (order < len(order))], minlength=len(order))
                wrong = int(np.flatnonzero(seen != 1)[0])
                what = "is missing" if seen[wrong] == 0 else "is listed twice"
                raise CulnigError(f"{self.path}: neuron {wrong} of {module} in layer {layer} {what}")
            values = np.frombuffer(self._values.pop((module, layer)), dtype=np.float64).reshape(len(order), -1)
            totals[:, layout.slice(module, layer)][:, order] = values.T
        return layout, totals
