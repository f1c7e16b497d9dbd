"""Matrices of named rows and columns as cells of one hue, with their numbers where these fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from culnig_fast.analysis.style import INK, SEQUENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NUMBERED = 17
"""Columns up to which a page is wide enough for a number in each cell."""


def draw_matrix(
    axes: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    low: float,
    high: float,
    text: Callable[[int, int], str] | None = None,
    bold: np.ndarray | None = None,
    outlined: np.ndarray | None = None,
) -> Any:
    """Draw cells, first row on top; returns what a colour bar is made of.

    Args:
        axes: where.
        values: float64 [rows, columns]; NaN leaves a cell white.
        rows, columns: their names.
        low, high: values of the lightest and darkest cell.
        text: what is written in the cell of a row and column; nothing by default.
        bold, outlined: bool [rows, columns], cells so marked.
    """
    from matplotlib.patches import Rectangle

    n_rows, n_columns = values.shape
    high = high if high > low else low + 1
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(values), cmap=SEQUENCE, vmin=low, vmax=high, edgecolors="white", linewidth=0.4
    )
    axes.invert_yaxis()
    axes.set_xticks(np.arange(n_columns) + 0.5, columns, rotation=90 if n_columns > 4 else 0)
    axes.set_yticks(np.arange(n_rows) + 0.5, rows)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for i in range(n_rows):
        for j in range(n_columns):
            written = text(i, j) if text is not None else ""
            if written:
                # Beyond 55 % of the scale this map is darker than mid-grey.
                dark = np.isfinite(values[i, j]) and (values[i, j] - low) / (high - low) > 0.55
                weight = "bold" if bold is not None and bold[i, j] else "normal"
                axes.text(j + 0.5, i + 0.5, written, ha="center", va="center", color="white" if dark else INK,
                          fontweight=weight, fontsize=6.0 if n_columns > 10 else 7.0)  # fmt: skip
            if outlined is not None and outlined[i, j]:
                axes.add_patch(Rectangle((j + 0.04, i + 0.04), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=1.4))
    return mesh


def colour_bar(figure: Figure, mesh: Any, axes: Axes | list[Axes], label: str) -> Any:
    """The scale of a matrix, right of it; in vectors too, where matplotlib would put a picture."""
    bar = figure.colorbar(mesh, ax=axes, label=label, aspect=30, fraction=0.04)
    solids: Any = bar.solids
    solids.set_rasterized(False)
    solids.set_edgecolor("face")
    return bar


def matrix_height(rows: int, *, cell: float = 0.26, around: float = 1.5) -> float:
    """Inches that so many rows need, with names under the columns."""
    return max(2.0, rows * cell + around)
