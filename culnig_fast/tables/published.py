"""The published figures beside a run's own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from culnig_fast.errors import CulnigError
from culnig_fast.files import read_json
from culnig_fast.tables.table import Cell, Row, Table

_ROWS = {
    "original": "original",
    "suppressed": "culture-general suppressed",
    "random": "random suppressed",
}


def published_models() -> tuple[str, ...]:
    """Models whose figures are at hand."""
    return tuple(_read()["models"])


def published_digest() -> str:
    """Of the file of figures."""
    return hashlib.sha256(_path().read_bytes()).hexdigest()[:16]


def published_table(model: str, own: Table, labels: Mapping[str, str]) -> Table:
    """The main table's rows with the published figures above each.

    Args:
        model: one of `published_models()`.
        own: the run's main table.
        labels: the benchmark that each of its columns is.

    Raises:
        CulnigError: no figures of that model.
    """
    known = _read()
    if model not in known["models"]:
        raise CulnigError(f"no published figures of {model!r}; there are some of {', '.join(known['models'])}")
    figures: dict[str, Any] = known["models"][model]
    rows: list[Row] = []
    for (key, title), (_, neurons, cells) in zip(_ROWS.items(), own.rows, strict=True):
        values = dict(zip(known["tasks"], figures.get(key, ()), strict=False))
        theirs = tuple(Cell(values[labels[c]]) if labels[c] in values else None for c in own.columns)
        differences = tuple(
            None if cell is None or other is None else Cell(cell.value - other.value)
            for cell, other in zip(cells, theirs, strict=True)
        )
        counted = None if key == "original" else int(figures["neurons"])
        rows += [
            (f"{title}, published", counted, theirs),
            (f"{title}, this run", neurons, cells),
            (f"{title}, difference", None, differences),
        ]
    notes = (f"Published: {known['source']}; {model}.", *own.notes)
    return Table("published", f"Published figures of {model} and this run's", own.columns, tuple(rows), notes)


def _read() -> dict[str, Any]:
    value: dict[str, Any] = read_json(_path())
    return value


def _path() -> Path:
    return Path(str(resources.files("culnig_fast.tables") / "published.json"))
