"""Average ranks of pairs of countries, ordered by the tree that they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from culnig_fast.analysis.frames import need
from culnig_fast.analysis.kinship import cluster
from culnig_fast.analysis.names import set_label
from culnig_fast.analysis.plots.matrix import MOST_NUMBERED, colour_bar, draw_matrix, matrix_height
from culnig_fast.analysis.style import INK, in_style, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = ("a", "b", "rank_ab", "average_rank")


@in_style
def draw(frame: pd.DataFrame) -> Figure:
    """From `kinship.average_ranks`: the tree on the left, the ranks beside it; the diagonal is each one's own rank."""
    need(frame, _COLUMNS, "kinship ranks")
    names, average, own = _square(frame)
    found = cluster(average)
    order = found["leaves"]
    shown = average.copy()
    np.fill_diagonal(shown, own)
    shown = shown[np.ix_(order, order)]
    labels = [set_label(names[i]) for i in order]
    figure = new_figure(matrix_height(len(names), around=1.6))
    # The tree's panel is drawn at the far side of the names, from its root on the left to its leaves.
    tree_axes, axes = figure.subplots(1, 2, width_ratios=(1, 4), sharey=True)
    mesh = draw_matrix(
        axes, -shown, labels, labels, low=-float(shown.max()), high=-float(shown.min()),
        text=(lambda i, j: f"{shown[i, j]:g}") if len(names) <= MOST_NUMBERED else None,
        outlined=np.eye(len(names), dtype=bool),
    )  # fmt: skip
    _draw_tree(tree_axes, found["linkage"], order)
    bar = colour_bar(figure, mesh, axes, "average rank (dark: loses most)")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{-value:g}")
    return figure


def describe(frame: pd.DataFrame) -> str:
    """The nearest pair, and how well the tree keeps the ranks."""
    need(frame, _COLUMNS, "kinship ranks")
    names, average, _ = _square(frame)
    i, j = np.triu_indices(len(names), 1)
    best = int(average[i, j].argmin())
    fit = cluster(average)["cophenetic"]
    kept = "" if np.isnan(fit) else f" The tree's distances correlate with the ranks at {fit:.2f}."
    return (
        f"Of {len(names)} countries, {set_label(names[i[best]])} and {set_label(names[j[best]])} are nearest: average "
        f"rank {average[i[best], j[best]]:.1f} under each other's suppression, against {average[i, j].mean():.1f} over "
        f"all pairs.{kept}"
    )


def _square(frame: pd.DataFrame) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Countries, average ranks [n, n], and each one's rank under its own suppression [n]."""
    names = list(dict.fromkeys(frame["a"]))
    average = frame["average_rank"].to_numpy(dtype=np.float64).reshape(len(names), -1)
    own = frame.loc[frame["a"] == frame["b"], "rank_ab"].to_numpy(dtype=np.float64)
    return names, average, own


def _draw_tree(axes: Axes, linkage: np.ndarray, order: list[int]) -> None:
    """Joints of the tree as brackets open to the right, leaves at the rows' middles."""
    from matplotlib.ticker import MaxNLocator

    n = len(order)
    height, middle = np.zeros(2 * n - 1), np.zeros(2 * n - 1)
    middle[order] = np.arange(n) + 0.5
    for step, (left, right, distance, _) in enumerate(linkage):
        a, b, joint = int(left), int(right), n + step
        height[joint], middle[joint] = distance, (middle[a] + middle[b]) / 2
        x: list[Any] = [height[a], distance, distance, height[b]]
        axes.plot(x, [middle[a], middle[a], middle[b], middle[b]], color=INK, linewidth=1.0)
    axes.set_xlim(1.05 * height.max() if height.max() > 0 else 1.0, 0)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("average rank\nat the joint")
