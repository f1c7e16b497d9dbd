"""Overlap of sets below the diagonal, and what chance would give above it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from culnig_fast.analysis.frames import need
from culnig_fast.analysis.names import set_label
from culnig_fast.analysis.plots.matrix import MOST_NUMBERED, colour_bar, draw_matrix, matrix_height
from culnig_fast.analysis.style import in_style, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_COLUMNS = ("a", "b", "neurons_a", "both", "jaccard", "expected_jaccard", "ratio", "p_by_pool_holm")
LEVEL = 0.05


@in_style
def draw(frame: pd.DataFrame) -> Figure:
    """From `overlap.overlaps`."""
    need(frame, _COLUMNS, "overlap")
    names = list(dict.fromkeys(frame["a"]))
    place = {name: i for i, name in enumerate(names)}
    values = np.full((len(names), len(names)), np.nan)
    bold = np.zeros(values.shape, dtype=bool)
    sizes = {}
    for row in frame.itertuples():
        i, j = place[row.a], place[row.b]
        if i == j:
            sizes[i] = row.neurons_a
            continue
        low, high = max(i, j), min(i, j)
        values[low, high], values[high, low] = 100 * row.jaccard, 100 * row.expected_jaccard
        bold[low, high] = row.p_by_pool_holm < LEVEL

    def written(i: int, j: int) -> str:
        if i == j:
            return f"{sizes[i]:,}"
        return _short(values[i, j]) if len(names) <= MOST_NUMBERED else ""

    figure = new_figure(matrix_height(len(names), cell=0.27))
    axes = figure.subplots()
    labels = [set_label(name) for name in names]
    top = float(np.nanmax(values)) if len(names) > 1 else 100.0
    mesh = draw_matrix(axes, values, labels, labels, low=0, high=top, text=written, bold=bold)
    axes.set_title("below the diagonal: observed; above: expected of independent sets; on it: neurons")
    colour_bar(figure, mesh, axes, "Jaccard overlap, %")
    return figure


def describe(frame: pd.DataFrame) -> str:
    """The pair that shares most, and how many pairs share more than chance."""
    need(frame, _COLUMNS, "overlap")
    pairs = frame[frame["a"] != frame["b"]]
    if not len(pairs):
        return "There is only one set, so no overlap."
    most = pairs.loc[pairs["jaccard"].idxmax()]
    more = int((pairs["p_by_pool_holm"] < LEVEL).sum())
    return (
        f"Jaccard overlap of {len(set(frame['a']))} sets: {pairs['jaccard'].mean():.3f} on average, where independent "
        f"sets would have {pairs['expected_jaccard'].mean():.3f}. {set_label(most['a'])} and {set_label(most['b'])} "
        f"share most ({most['both']:.0f} neurons, Jaccard {most['jaccard']:.2f}); {more} of {len(pairs)} pairs share "
        "more than chance."
    )


def _short(value: float) -> str:
    """Per cent in three characters or so: 30, 4.2, <0.1, 0."""
    if 0 < value < 0.05:
        return "<0.1"
    return f"{value:.0f}" if value == 0 or value >= 9.95 else f"{value:.1f}"
