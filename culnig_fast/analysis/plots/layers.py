"""Neurons of a set by layer, a panel a module, beside random sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from culnig_fast.analysis.frames import need
from culnig_fast.analysis.layers import RANDOM
from culnig_fast.analysis.names import counted, listed, module_label, set_label
from culnig_fast.analysis.style import FILLS, INK, count_axis, in_style, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_COLUMNS = ("set", "layer", "module", "neurons", "sd", "share", "sets")
_MOST_SETS = 4


@in_style
def draw(frame: pd.DataFrame) -> Figure:
    """From `layers.neurons_by_layer`: bars for up to four named sets, a line for the random ones."""
    from matplotlib.ticker import MaxNLocator

    need(frame, _COLUMNS, "layers")
    modules = _modules(frame)
    sets = [name for name in dict.fromkeys(frame["set"]) if name != RANDOM][:_MOST_SETS]
    figure = new_figure(0.9 + 1.15 * len(modules))
    panels = figure.subplots(len(modules), 1, sharex=True, squeeze=False)[:, 0]
    width = 0.8 / max(1, len(sets))
    for axes, module in zip(panels, modules, strict=True):
        here = frame[frame["module"] == module]
        for place, (name, (colour, hatch)) in enumerate(zip(sets, FILLS, strict=False)):
            own = here[here["set"] == name]
            left = own["layer"] + (place - (len(sets) - 1) / 2) * width
            axes.bar(left, own["neurons"], width, color=colour, hatch=hatch, edgecolor=INK, label=set_label(name))
        drawn = here[here["set"] == RANDOM]
        if len(drawn):
            number = int(drawn["sets"].iloc[0])
            axes.errorbar(
                drawn["layer"], drawn["neurons"], yerr=np.nan_to_num(drawn["sd"]), color=INK, marker="o",
                markersize=3, linestyle="--", capsize=1.5, elinewidth=0.8, linewidth=0.9, markerfacecolor="white",
                markeredgewidth=0.7, label=f"{counted(number, 'random set')}: mean ± sd",
            )  # fmt: skip
        axes.set_title(module_label(module))
        axes.set_ylim(bottom=0, top=_top(here))
        count_axis(axes.yaxis, 4)
        axes.set_ylabel("neurons")
    panels[-1].set_xlabel("layer")
    panels[-1].xaxis.set_major_locator(MaxNLocator(16, integer=True))
    panels[-1].set_xlim(frame["layer"].min() - 0.6, frame["layer"].max() + 0.6)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def describe(frame: pd.DataFrame) -> str:
    """The layers that hold most of each named set."""
    need(frame, _COLUMNS, "layers")
    sentences = []
    for name in [name for name in dict.fromkeys(frame["set"]) if name != RANDOM][:_MOST_SETS]:
        own = frame[frame["set"] == name]
        layers = own.groupby("layer")["neurons"].sum()
        modules = own.groupby("module", sort=False)["neurons"].sum()
        if layers.sum() == 0:
            sentences.append(f"The {set_label(name)} set is empty.")
            continue
        parts = [f"{int(n):,} {module_label(str(module))}" for module, n in modules.items() if n]
        sentences.append(
            f"Of the {counted(layers.sum(), f'{set_label(name)} neuron')} ({listed(parts)}), "
            f"{100 * layers.max() / layers.sum():.0f} % lie in layer {layers.idxmax()}; "
            f"the shallower half of the layers holds {100 * _shallow(layers):.0f} %."
        )
    drawn = frame[frame["set"] == RANDOM]
    if len(drawn):
        spread = drawn.groupby("layer")["neurons"].sum()
        sentences.append(f"Random sets have {spread.min():.1f} to {spread.max():.1f} neurons in every layer.")
    return " ".join(sentences)


def _shallow(layers: pd.Series) -> float:
    return float(layers.iloc[: len(layers) // 2].sum() / layers.sum())


def _top(frame: pd.DataFrame) -> float:
    return float(max(1.0, 1.08 * (frame["neurons"] + np.nan_to_num(frame["sd"])).max()))


def _modules(frame: pd.DataFrame) -> list[str]:
    """MLP first: most neurons lie there."""
    return sorted(dict.fromkeys(frame["module"]), key=lambda name: not name.startswith("mlp"))
