"""What every country loses when another's neurons are suppressed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from culnig_fast.analysis.frames import need
from culnig_fast.analysis.kinship import matrix
from culnig_fast.analysis.names import set_label
from culnig_fast.analysis.plots.matrix import MOST_NUMBERED, colour_bar, draw_matrix, matrix_height
from culnig_fast.analysis.style import in_style, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_COLUMNS = ("suppressed", "country", "drop", "rank", "own")


@in_style
def draw(frame: pd.DataFrame) -> Figure:
    """From `kinship.drops`: a row a suppressed set, a column a country, points lost; own cells outlined."""
    need(frame, _COLUMNS, "kinship")
    rows, columns, drop = matrix(frame, "drop")
    _, _, own = matrix(frame, "own")
    figure = new_figure(matrix_height(len(rows), around=1.6))
    axes = figure.subplots()
    digits = 0 if len(columns) > 12 else 1

    def written(i: int, j: int) -> str:
        return f"{drop[i, j] + 0.0:.{digits}f}".replace("-0", "0") if drop[i, j] > -0.5 else f"{drop[i, j]:.{digits}f}"

    mesh = draw_matrix(
        axes, drop, [set_label(name) for name in rows], [set_label(name) for name in columns],
        low=min(0.0, float(drop.min())), high=float(drop.max()),
        text=written if len(columns) <= MOST_NUMBERED else None, outlined=own > 0,
    )  # fmt: skip
    axes.set_ylabel("neurons suppressed")
    axes.set_xlabel("questions about")
    colour_bar(figure, mesh, axes, "points lost")
    return figure


def describe(frame: pd.DataFrame) -> str:
    """Own loss against that of others, and how often the own country loses most."""
    need(frame, _COLUMNS, "kinship")
    own = frame["own"].astype(bool)
    first = int((frame.loc[own, "rank"] == 1).sum())
    return (
        f"Suppressing a country's neurons costs that country {frame.loc[own, 'drop'].mean():.1f} points on average and "
        f"the others {frame.loc[~own, 'drop'].mean():.1f}. For {first} of {int(own.sum())} sets no country loses more "
        f"than the set's own; its mean rank is {frame.loc[own, 'rank'].mean():.1f} of {frame['country'].nunique()}."
    )
