"""A table and its cells, before anybody decides how it looks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One figure, in points 0…100 unless its table says otherwise.

    Attributes:
        value: the figure.
        low, high: its confidence interval; None where a figure was taken over without one.
        sd: standard deviation over random sets, where it is a mean of them.
        p, p_holm: of the test that the table's notes name, before and after Holm's adjustment; None: not tested.
        bold: whether the adjusted p is below 0.05.
        n: questions.
    """

    value: float
    low: float | None = None
    high: float | None = None
    sd: float | None = None
    p: float | None = None
    p_holm: float | None = None
    bold: bool = False
    n: int | None = None


Row = tuple[str, int | None, tuple[Cell | None, ...]]
"""Name, neurons or None, cells."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns; None is an empty cell.

    Attributes:
        name: of its files.
        title: one line.
        columns: of the cells, without the column of row names.
        rows: (name, neurons or None, cells).
        notes: a sentence each: units, intervals, tests.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        rows = [
            {
                "row": name,
                "neurons": neurons,
                "cells": {
                    column: None if cell is None else asdict(cell)
                    for column, cell in zip(self.columns, cells, strict=True)
                },
            }
            for name, neurons, cells in self.rows
        ]
        return {"name": self.name, "title": self.title, "rows": rows, "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Table:
        """Read what `to_dict` wrote; KeyError, TypeError or ValueError for anything else."""
        columns = tuple(value["rows"][0]["cells"]) if value["rows"] else ()
        rows: list[Row] = []
        for row in value["rows"]:
            cells = tuple(_cell(row["cells"][column]) for column in columns)
            rows.append((_of(row["row"], str), _of(row["neurons"], int, None), cells))
        notes = tuple(_of(note, str) for note in _of(value["notes"], list))
        return cls(_of(value["name"], str), _of(value["title"], str), columns, tuple(rows), notes)


def _cell(value: Any) -> Cell | None:
    """A cell as `to_dict` wrote it, every field of its kind."""
    if value is None:
        return None
    cell = Cell(**value)
    _of(cell.value, float)
    for number in (cell.low, cell.high, cell.sd, cell.p, cell.p_holm):
        _of(number, float, None)
    _of(cell.bold, bool), _of(cell.n, int, None)
    return cell


def _of(value: Any, kind: type, *others: None) -> Any:
    """The value, if it is of this kind, or None where that is another; ValueError if not."""
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not fits and not (others and value is None):
        raise ValueError(f"{value!r:.60} is no {kind.__name__}")
    return value
