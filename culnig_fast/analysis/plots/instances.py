"""On what share of the samples neurons help."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from culnig_fast.analysis.frames import need
from culnig_fast.analysis.names import counted
from culnig_fast.analysis.style import FILLS, INK, count_axis, in_style, mark_value, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_COLUMNS = ("module_name", "positive_share", "samples")


@in_style
def draw(frame: pd.DataFrame) -> Figure:
    """From `instances.positive_shares`: neurons by that share, MLP and attention stacked, the mean as a line."""
    need(frame, _COLUMNS, "instances")
    figure = new_figure(2.8)
    axes = figure.subplots()
    share = 100 * frame["positive_share"].to_numpy(dtype=np.float64)
    mlp = frame["module_name"].str.startswith("mlp").to_numpy()
    edges = np.linspace(0, 100, 41)
    floor = np.zeros(len(edges) - 1)
    for name, rows, (colour, hatch) in (("MLP", mlp, FILLS[0]), ("attention", ~mlp, FILLS[1])):
        if not rows.any():
            continue
        counts = np.histogram(share[rows], edges)[0]
        label = f"{counted(int(rows.sum()), f'{name} neuron')}"
        axes.bar(edges[:-1], counts, np.diff(edges), bottom=floor, align="edge", color=colour, hatch=hatch,
                 edgecolor=INK, label=label)  # fmt: skip
        floor = floor + counts
    mark_value(axes, share.mean(), f"mean: {share.mean():.1f} %")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 1.05 * floor.max())
    count_axis(axes.yaxis)
    axes.set_xlabel("% of the samples with a positive score")
    axes.set_ylabel("neurons")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def describe(frame: pd.DataFrame) -> str:
    """Mean and range of the share."""
    need(frame, _COLUMNS, "instances")
    share = 100 * frame["positive_share"]
    return (
        f"{counted(len(frame), 'neuron')} on {counted(int(frame['samples'].iloc[0]), 'sample')}: a neuron's score is "
        f"positive on {share.mean():.1f} % of the samples on average, on {share.min():.1f} % at least and "
        f"{share.max():.1f} % at most."
    )
