"""Neurons of every country by layer: two matrices, MLP and attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from culnig_fast.analysis.frames import need
from culnig_fast.analysis.layers import RANDOM
from culnig_fast.analysis.names import set_label
from culnig_fast.analysis.plots.matrix import MOST_NUMBERED, colour_bar, draw_matrix
from culnig_fast.analysis.style import in_style, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_COLUMNS = ("set", "layer", "module", "neurons", "share")


@in_style
def draw(frame: pd.DataFrame) -> Figure:
    """From `layers.neurons_by_layer`: a row a set, a column a layer, share of the set's neurons."""
    need(frame, _COLUMNS, "layers by country")
    names, layers, mlp, attention = _shares(frame)
    figure = new_figure(1.1 + 0.34 * len(names))
    panels = figure.subplots(2, 1, sharex=True)
    high = max(mlp.max(), attention.max())
    step = max(1, -(-len(layers) // 16))
    mesh: Any = None
    for axes, title, values in zip(panels, ("MLP", "attention"), (mlp, attention), strict=True):
        labels = [str(layer) if i % step == 0 else "" for i, layer in enumerate(layers)]
        written = (lambda i, j, v=values: f"{v[i, j]:.0f}") if len(layers) <= MOST_NUMBERED else None
        mesh = draw_matrix(axes, values, [set_label(n) for n in names], labels, low=0, high=high, text=written)
        axes.set_title(title)
        axes.tick_params(axis="x", rotation=0)
    panels[-1].set_xlabel("layer")
    colour_bar(figure, mesh, list(panels), "% of the set's neurons")
    return figure


def describe(frame: pd.DataFrame) -> str:
    """How shallow the sets lie, and how much of them is MLP."""
    need(frame, _COLUMNS, "layers by country")
    names, layers, mlp, attention = _shares(frame)
    total = mlp + attention
    # A share of 0 is an empty set's.
    sets = [i for i in range(len(names)) if total[i].sum() > 0]
    if not sets:
        return "All sets are empty."
    shallow = total[sets][:, : len(layers) // 2].sum(1)
    in_mlp = mlp[sets].sum(1)
    low, high = sets[int(shallow.argmin())], sets[int(shallow.argmax())]
    return (
        f"Share of each set's neurons in the shallower half of {len(layers)} layers: from {shallow.min():.0f} % "
        f"({set_label(names[low])}) to {shallow.max():.0f} % ({set_label(names[high])}). "
        f"MLP neurons make up {in_mlp.min():.0f} to {in_mlp.max():.0f} % of a set."
    )


def _shares(frame: pd.DataFrame) -> tuple[list[str], list[int], np.ndarray, np.ndarray]:
    """Sets, layers, and per cent of each set, float64 [sets, layers], in MLP and in attention."""
    own = frame[frame["set"] != RANDOM]
    names, layers = list(dict.fromkeys(own["set"])), sorted(set(own["layer"].tolist()))
    result = []
    for is_mlp in (True, False):
        part = own[own["module"].str.startswith("mlp") == is_mlp]
        table = part.pivot_table(index="set", columns="layer", values="share", aggfunc="sum", sort=False)
        table = table.reindex(index=names, columns=layers).fillna(0.0)
        result.append(100 * table.to_numpy(dtype=np.float64))
    return names, layers, result[0], result[1]
