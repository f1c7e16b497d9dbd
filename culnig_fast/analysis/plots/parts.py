"""Points lost on every task with parts of the culture-general neurons suppressed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from culnig_fast.analysis.frames import need
from culnig_fast.analysis.names import set_label
from culnig_fast.analysis.parts import RANDOM
from culnig_fast.analysis.style import FILLS, INK, in_style, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_COLUMNS = ("task", "part", "neurons", "lost", "low", "high")


@in_style
def draw(frame: pd.DataFrame) -> Figure:
    """From `parts.parts_lost`: a group of bars a task, intervals on them."""
    need(frame, _COLUMNS, "parts")
    tasks, parts = list(dict.fromkeys(frame["task"])), list(dict.fromkeys(frame["part"]))
    figure = new_figure(3.2)
    axes = figure.subplots()
    width = 0.84 / len(parts)
    for place, part in enumerate(parts):
        own = frame[frame["part"] == part].set_index("task").loc[tasks]
        x = np.arange(len(tasks)) + (place - (len(parts) - 1) / 2) * width
        colour, hatch = FILLS[place % len(FILLS)]
        ends = np.stack([own["lost"] - own["low"], own["high"] - own["lost"]]).clip(0)
        axes.bar(
            x, own["lost"], width, yerr=ends, color=colour, hatch=hatch, edgecolor=INK,
            error_kw={"elinewidth": 0.9, "capsize": 2, "ecolor": INK}, label=_label(part, own),
        )  # fmt: skip
    axes.axhline(0, color=INK, linewidth=0.7)
    axes.spines["bottom"].set_visible(False)
    many = len(tasks) > 6
    labels = [name.replace("_", " ") for name in tasks]
    axes.set_xticks(
        np.arange(len(tasks)), labels, rotation=30 if many else 0, ha="right" if many else "center",
        rotation_mode="anchor" if many else None,
    )  # fmt: skip
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("points lost")
    figure.legend(loc="outside upper center", ncols=4)
    return figure


def describe(frame: pd.DataFrame) -> str:
    """Where each part costs most."""
    need(frame, _COLUMNS, "parts")
    sentences = []
    for part in dict.fromkeys(frame["part"]):
        own = frame[frame["part"] == part]
        most = own.loc[own["lost"].idxmax()]
        sentences.append(
            f"{_name(part)} suppressed costs most on {str(most['task']).replace('_', ' ')}: {most['lost']:.1f} points "
            f"({most['low']:.1f} to {most['high']:.1f})."
        )
    return " ".join(sentences)


def _label(part: str, own: pd.DataFrame) -> str:
    return f"{_name(part)} ({int(own['neurons'].iloc[0]):,})"


def _name(part: str) -> str:
    text = set_label(RANDOM) if part == RANDOM else part
    return text[:1].upper() + text[1:]
