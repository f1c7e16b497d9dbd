"""How much the culture-general sets of different thresholds share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from culnig_fast.analysis.frames import need
from culnig_fast.analysis.plots.matrix import MOST_NUMBERED, colour_bar, draw_matrix, matrix_height
from culnig_fast.analysis.style import in_style, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_SHARES = ("mlp_share", "attention_share", "surface_share")
_COLUMNS = ("a", "b", *(f"{name}_a" for name in _SHARES), "neurons_a", "jaccard")


@in_style
def draw(frame: pd.DataFrame) -> Figure:
    """From `stability.threshold_overlaps`: a row and a column a setting, named by its three shares in per cent."""
    need(frame, _COLUMNS, "stability over thresholds")
    settings, values = _square(frame)
    labels = [" · ".join(f"{100 * getattr(row, f'{name}_a'):g}" for name in _SHARES) for row in settings.itertuples()]
    counts = [f"{label}  ({int(n):,})" for label, n in zip(labels, settings["neurons_a"], strict=True)]
    figure = new_figure(matrix_height(len(labels), cell=0.2, around=1.7))
    axes = figure.subplots()
    mesh = draw_matrix(
        axes, values, counts, labels, low=0, high=1,
        text=(lambda i, j: f"{values[i, j]:.2f}") if len(labels) <= MOST_NUMBERED else None,
    )  # fmt: skip
    axes.set_title("% of MLP · % of attention · % dropped by CountryRC  (neurons)")
    axes.tick_params(labelsize=7)
    colour_bar(figure, mesh, axes, "Jaccard overlap")
    return figure


def describe(frame: pd.DataFrame) -> str:
    """Sizes and overlaps of the settings."""
    need(frame, _COLUMNS, "stability over thresholds")
    settings, values = _square(frame)
    if len(settings) < 2:
        return "Only one setting of the thresholds was tried."
    between = values[np.triu_indices(len(settings), 1)]
    return (
        f"{len(settings)} settings of the thresholds choose {int(settings['neurons_a'].min()):,} to "
        f"{int(settings['neurons_a'].max()):,} neurons; two settings' sets overlap by a Jaccard of "
        f"{between.mean():.2f} on average ({between.min():.2f} to {between.max():.2f})."
    )


def _square(frame: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """A row a setting, and overlaps [settings, settings]."""
    settings = frame.drop_duplicates("a")
    return settings, frame["jaccard"].to_numpy(dtype=np.float64).reshape(len(settings), -1)
