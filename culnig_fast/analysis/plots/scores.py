"""How scores are spread over all neurons of a pool, and where the threshold cuts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from culnig_fast.analysis.frames import need
from culnig_fast.analysis.names import counted, set_label
from culnig_fast.analysis.style import BLUE, INK, PALE, in_style, mark_value, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_COLUMNS = ("pool", "low", "high", "neurons", "candidates", "selected", "threshold", "linear")


@in_style
def draw(frame: pd.DataFrame) -> Figure:
    """From `scores.score_histogram`: a panel a pool, both axes logarithmic."""
    need(frame, _COLUMNS, "scores")
    pools = list(dict.fromkeys(frame["pool"]))
    figure = new_figure(0.8 + 2.0 * len(pools))
    panels = figure.subplots(len(pools), 1, squeeze=False)[:, 0]
    for axes, pool in zip(panels, pools, strict=True):
        own = frame[frame["pool"] == pool]
        low, width = own["low"].to_numpy(), (own["high"] - own["low"]).to_numpy()
        axes.bar(low, own["neurons"], width, align="edge", color=PALE, edgecolor=INK, linewidth=0.3,
                 label="all neurons of the pool")  # fmt: skip
        axes.bar(low, own["selected"], width, align="edge", color=BLUE, hatch="////", edgecolor=INK, linewidth=0.3,
                 label="culture-general")  # fmt: skip
        mark_value(axes, own["threshold"].iloc[0], "threshold")
        _set_scales(axes, own)
        axes.set_title(f"{set_label(pool)}: {counted(int(own['neurons'].sum()), 'neuron')}")
        axes.set_ylabel("neurons")
    panels[-1].set_xlabel("score")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def describe(frame: pd.DataFrame) -> str:
    """Thresholds, candidates and what was kept of them."""
    need(frame, _COLUMNS, "scores")
    sentences = []
    for pool in dict.fromkeys(frame["pool"]):
        own = frame[frame["pool"] == pool]
        total, candidates, selected = (int(own[name].sum()) for name in ("neurons", "candidates", "selected"))
        cut = own["threshold"].iloc[0]
        if np.isnan(cut):
            sentences.append(f"{set_label(pool)}: the share is less than one of {total:,} neurons.")
            continue
        positive = int(own.loc[own["low"] >= 0, "neurons"].sum())
        sentences.append(
            f"{set_label(pool)}: of {total:,} neurons {100 * positive / total:.0f} % score clearly above 0; "
            f"{counted(candidates, 'neuron')} reach{'es' if candidates == 1 else ''} the threshold of {cut:.2g}, and "
            f"{selected:,} of them are culture-general."
        )
    return " ".join(s[:1].upper() + s[1:] for s in sentences)


def _set_scales(axes: object, own: pd.DataFrame) -> None:
    """Symmetric-log scores with a mark at 0 and at some powers of ten; logarithmic counts from below 1."""
    from matplotlib.axes import Axes
    from matplotlib.ticker import NullLocator

    assert isinstance(axes, Axes)
    linear = float(own["linear"].iloc[0])
    axes.set_xscale("symlog", linthresh=linear, linscale=0.5)
    axes.set_xlim(own["low"].iloc[0], own["high"].iloc[-1])
    powers = _powers(linear, max(abs(own["low"].iloc[0]), own["high"].iloc[-1]))
    ticks = [-p for p in powers if -p >= own["low"].iloc[0]] + [0.0] + [p for p in powers if p <= own["high"].iloc[-1]]
    axes.set_xticks(sorted(ticks), [_power(tick) for tick in sorted(ticks)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: _power(value))
    axes.set_ylim(0.7, 1.5 * own["neurons"].max())


def _power(value: float) -> str:
    """0, and a power of ten written as such: `−10⁻³`."""
    if value == 0:
        return "0"
    exponent = str(round(np.log10(abs(value)))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{'−' if value < 0 else ''}10{exponent}"


def _powers(linear: float, largest: float) -> list[float]:
    """Powers of ten from `linear` to `largest`, at most five."""
    first, last = round(np.log10(linear)), int(np.floor(np.log10(largest) + 1e-9))
    step = max(1, -(-(last - first) // 4))
    return [10.0**power for power in range(first, last + 1, step)]
