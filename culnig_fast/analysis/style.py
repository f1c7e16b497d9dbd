"""One look for every figure, and figures as files: vector, the same bytes each time, legible without colour."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from culnig_fast.files import atomic_write, refuse_existing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442"
"""Of the palette of Okabe and Ito, which colour-blind readers tell apart."""

GREY, PALE, INK = "#767676", "#D9D9D9", "#1A1A1A"

FILLS = ((BLUE, ""), (SKY, "////"), (PALE, "...."), ("#FFFFFF", "xxxx"))
"""Colour and hatch of the first, second, … kind of bar; either alone tells them apart."""

SEQUENCE = "Blues"
"""Colour map of matrices: one hue, darker is more, so that a grey print keeps the order."""

WIDTH = 7.0
"""Inches: a page between its margins."""

_LOCK = threading.RLock()

_SETTINGS: Any = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same widths on every machine
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "hatch.linewidth": 0.6,
    "hatch.color": INK,
    "patch.linewidth": 0.6,
    "figure.dpi": 100.0,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",  # glyphs travel with the file
    "svg.hashsalt": "culnig_fast",
    "pdf.fonttype": 42,  # whole TrueType glyphs, text that can be searched
    "text.parse_math": False,  # a name from data may hold a $
}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Matplotlib's defaults with this style, whatever the user's own settings; both are as before afterwards."""
    import matplotlib

    # Settings are one dictionary for all threads.
    with _LOCK, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def in_style(draw: Callable[[pd.DataFrame], Figure]) -> Callable[[pd.DataFrame], Figure]:
    """Make a function that draws a frame draw it in this style."""

    @functools.wraps(draw)
    def inner(frame: pd.DataFrame) -> Figure:
        with styled():
            return draw(frame)

    return inner


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, inches, that arranges its parts so that nothing is cut or covered; none of pyplot's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def mark_value(axes: Axes, x: float, label: str) -> None:
    """A dashed vertical line with a white rim, seen on dark bars and on white alike."""
    axes.axvline(x, color="white", linewidth=2.4)
    axes.axvline(x, color=INK, linestyle=(0, (4, 2)), linewidth=1.4, label=label)


def count_axis(axis: Axis, ticks: int = 5) -> None:
    """Whole numbers on an axis, thousands apart: `80,000`."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(ticks, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def save_figure(figure: Figure, folder: str | Path, name: str, overwrite: bool = False) -> tuple[Path, Path]:
    """Write NAME.svg and NAME.pdf, fonts inside, the same bytes for the same figure; each atomic.

    Raises:
        CulnigError: a file exists and `overwrite` is false, or it cannot be written.
    """
    paths = (Path(folder) / f"{name}.svg", Path(folder) / f"{name}.pdf")
    for path in paths:
        refuse_existing(path, overwrite)
    dates: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with styled():
        for path in paths:
            with atomic_write(path, overwrite) as temporary:
                figure.savefig(temporary, format=path.suffix[1:], metadata=dates[path.suffix])
    return paths
