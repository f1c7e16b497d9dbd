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
            cells = [row["cells"][column] for column in columns]
            rows.append((row["row"], row["neurons"], tuple(None if cell is None else Cell(**cell) for cell in cells)))
        return cls(value["name"], value["title"], columns, tuple(rows), tuple(value["notes"]))
