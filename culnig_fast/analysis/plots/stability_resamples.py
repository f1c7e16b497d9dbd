"""How much the sets of resampled questions share with the set of all questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from culnig_fast.analysis.frames import need
from culnig_fast.analysis.names import counted
from culnig_fast.analysis.style import BLUE, GREEN, INK, in_style, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_COLUMNS = ("resample", "jaccard", "jaccard_others", "expected")


@in_style
def draw(frame: pd.DataFrame) -> Figure:
    """From `stability.resample_overlaps`: resamples in the order of their overlap, and the level of chance."""
    from matplotlib.ticker import MaxNLocator

    need(frame, _COLUMNS, "stability over resamples")
    own = frame.sort_values("jaccard", ascending=False, kind="stable")
    x = np.arange(1, len(own) + 1)
    figure = new_figure(2.8)
    axes = figure.subplots()
    axes.plot(
        x, own["jaccard"], linestyle="none", marker="o", markersize=4, color=BLUE, label="with all questions' set"
    )
    axes.plot(
        x, own["jaccard_others"], linestyle="none", marker="^", markersize=4, markerfacecolor="white", color=GREEN,
        label="with the other resamples' sets, mean",
    )  # fmt: skip
    axes.plot(x, own["expected"], linestyle="--", color=INK, marker="s" if len(own) == 1 else "", label="by chance")
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(0.4, len(own) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.set_xlabel("resample of the questions, most alike first")
    axes.set_ylabel("Jaccard overlap")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def describe(frame: pd.DataFrame) -> str:
    """Mean and range of the overlap, and chance."""
    need(frame, _COLUMNS, "stability over resamples")
    found = frame["jaccard"]
    return (
        f"Over {counted(len(frame), 'resample')} of the questions, the set chosen overlaps that of all questions by a "
        f"Jaccard of {found.mean():.2f} on average ({found.min():.2f} to {found.max():.2f}); random sets would by "
        f"{frame['expected'].mean():.3f}."
    )
