"""How often resampled questions choose each neuron."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from culnig_fast.analysis.frames import need
from culnig_fast.analysis.names import counted
from culnig_fast.analysis.style import FILLS, INK, count_axis, in_style, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_COLUMNS = ("in_full", "frequency", "resamples")
_MOST_BINS = 20


@in_style
def draw(frame: pd.DataFrame) -> Figure:
    """From `stability.selection_frequency`: neurons by how often they are chosen, those of the full set apart."""
    need(frame, _COLUMNS, "stability of neurons")
    figure = new_figure(2.8)
    axes = figure.subplots()
    full = frame["in_full"].astype(bool).to_numpy()
    share = 100 * frame["frequency"].to_numpy(dtype=np.float64)
    edges = np.linspace(0, 100, min(_MOST_BINS, int(frame["resamples"].iloc[0])) + 1)
    floor = np.zeros(len(edges) - 1)
    for name, rows, (colour, hatch) in (
        ("in the set of all questions", full, FILLS[0]),
        ("only in sets of resamples", ~full, FILLS[1]),
    ):
        counts = np.histogram(share[rows], edges)[0]
        axes.bar(edges[:-1], counts, np.diff(edges), bottom=floor, align="edge", color=colour, hatch=hatch,
                 edgecolor=INK, label=f"{name} ({int(rows.sum()):,})")  # fmt: skip
        floor = floor + counts
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 1.05 * floor.max())
    count_axis(axes.yaxis)
    axes.set_xlabel("% of the resamples that choose the neuron")
    axes.set_ylabel("neurons")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def describe(frame: pd.DataFrame) -> str:
    """How many neurons of the full set are nearly always chosen, and how many others turn up."""
    need(frame, _COLUMNS, "stability of neurons")
    full = frame[frame["in_full"].astype(bool)]
    often = int((full["frequency"] >= 0.9).sum())
    return (
        f"Of the {counted(len(full), 'neuron')} chosen on all questions, {often:,} are chosen in at least 90 % of "
        f"{counted(int(frame['resamples'].iloc[0]), 'resample')}, and one is chosen in "
        f"{100 * full['frequency'].mean():.0f} % on average; {len(frame) - len(full):,} others are chosen in some "
        "resample."
    )
