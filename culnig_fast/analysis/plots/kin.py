"""Where known kin rank under each other's suppression, against chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from culnig_fast.analysis.frames import need
from culnig_fast.analysis.names import set_label
from culnig_fast.analysis.style import BLUE, GREEN, INK, in_style, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_COLUMNS = ("suppressed", "kin", "rank", "rank_centred", "hit", "hit_centred", "others", "kin_count")


@in_style
def draw(frame: pd.DataFrame) -> Figure:
    """From `kin.kin_ranks`: a line a pair, its rank by bare and by centred drops, the mean of chance as a line."""
    need(frame, _COLUMNS, "kin")
    y = np.arange(len(frame))
    others = int(frame["others"].iloc[0])
    figure = new_figure(1.1 + 0.2 * len(frame))
    axes = figure.subplots()
    axes.axvline((others + 1) / 2, color=INK, linestyle=(0, (4, 2)), linewidth=1.2, label="mean of chance")
    # Side by side, so that equal ranks do not cover each other.
    ways = (("rank", "o", BLUE, BLUE, "bare drop", -0.16), ("rank_centred", "^", GREEN, "white", "centred drop", 0.16))
    for column, marker, colour, face, name, aside in ways:
        label = f"{name}: mean {frame[column].mean():.1f}"
        axes.plot(
            frame[column], y + aside, linestyle="none", marker=marker, markersize=5, color=colour,
            markerfacecolor=face, label=label,
        )  # fmt: skip
    names = [f"{set_label(a)} → {set_label(b)}" for a, b in zip(frame["suppressed"], frame["kin"], strict=True)]
    axes.set_yticks(y, names)
    axes.set_ylim(len(frame) - 0.4, -0.6)
    axes.set_xlim(0.4, others + 0.6)
    axes.set_xticks(range(1, others + 1))
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"rank of the kin among the {others} other countries (1 loses most)")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def describe(frame: pd.DataFrame) -> str:
    """Mean ranks and shares found, against chance."""
    need(frame, _COLUMNS, "kin")
    others = int(frame["others"].iloc[0])
    return (
        f"Over {len(frame)} ordered pairs of kin, the kin ranks {frame['rank'].mean():.1f} on average by bare and "
        f"{frame['rank_centred'].mean():.1f} by centred drops, where chance gives {(others + 1) / 2:g}. Among as many "
        f"countries as there are kin, {100 * frame['hit'].mean():.0f} % and {100 * frame['hit_centred'].mean():.0f} % "
        f"of them are found; chance finds {100 * frame['kin_count'].mean() / others:.0f} %."
    )
