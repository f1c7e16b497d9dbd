"""The section of figures: drawings with title, caption, words for who does not see them, and the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from culnig_fast.errors import CulnigError
from culnig_fast.report.limits import FIGURE_BYTES, FIGURES_BYTES, PREVIEW_ROWS
from culnig_fast.report.reading import RunFiles, csv_rows, read_text
from culnig_fast.report.svg import Drawing, UnsafeSvgError, inline_svg


class Described(Protocol):
    """What the page needs of a plot of `analysis.catalogue.PLOTS`."""

    @property
    def title(self) -> str: ...
    @property
    def caption(self) -> str: ...
    @property
    def describe(self) -> Any: ...


@dataclass(frozen=True)
class Preview:
    """The first rows of a csv as text, how many there are, and which columns hold nothing but numbers."""

    file: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: int
    numeric: frozenset[int]


@dataclass(frozen=True)
class Figure:
    """One figure of the page; `drawing` is None where `missing` says why, or where there is none to be drawn."""

    name: str
    title: str
    caption: str
    drawing: Drawing | None
    missing: str | None
    preview: Preview | None


def figures(run: RunFiles, plots: Mapping[str, Described]) -> list[Figure]:
    """Figures and analyses of the run: those of `plots` in its order, then files that it does not know."""
    names = [name for name in plots if name in run.figures or name in run.analyses]
    names += sorted(({*run.figures} | {*run.analyses}) - {*plots})
    left = FIGURES_BYTES
    found = []
    for number, name in enumerate(names):
        plot = plots.get(name)
        title = plot.title if plot is not None else name.replace("_", " ").replace("-", " ")
        alt = _alt(run, name, plot, title)
        drawing, missing = _drawing(run.figures.get(name), f"f{number}-", alt, left)
        if plot is None and name not in run.figures:
            missing = None  # an analysis that is read as numbers
        left -= 0 if drawing is None else len(drawing.markup)
        caption = plot.caption if plot is not None else ""
        found.append(Figure(name, title, caption, drawing, missing, _preview(run.analyses.get(name))))
    return found


def _alt(run: RunFiles, name: str, plot: Described | None, title: str) -> str:
    """The plot's own description of its data; the title where there are no data to describe."""
    if plot is None or name not in run.analyses:
        return title
    from culnig_fast.analysis.frames import load_frame

    frame = load_frame(run.analyses[name])
    try:
        described = str(plot.describe(frame))
    except Exception as error:  # a csv of another version or edited by hand, in whatever way it fails
        raise CulnigError(
            f"{run.analyses[name]} cannot be described ({error!r}); delete it and continue the run"
        ) from error
    return f"{title if title.endswith('?') else title + '.'} {described}"


def _drawing(path: Path | None, prefix: str, alt: str, left: int) -> tuple[Drawing | None, str | None]:
    if path is None:
        return None, "The figure is not in the folder; its numbers are below."
    where = f"figures/{path.name}"
    if path.stat().st_size > FIGURE_BYTES:
        return None, f"{where} is too large to be put into this page ({path.stat().st_size:,} bytes)."
    try:
        drawing = inline_svg(read_text(path), prefix, alt)
    except UnsafeSvgError as error:
        return None, f"{where} was left out: it {error}."
    if len(drawing.markup) > left:
        return None, f"{where} was left out: the figures before it fill the page."
    return drawing, None


def _preview(path: Path | None) -> Preview | None:
    if path is None:
        return None
    rows = csv_rows(path)
    if not rows:
        return None
    body = tuple(tuple(map(_shown, row)) for row in rows[1 : PREVIEW_ROWS + 1])
    head = tuple(name.replace("_", " ") for name in rows[0])
    numeric = frozenset(i for i in range(len(head)) if all(_is_number(row[i]) for row in body if row[i : i + 1]))
    return Preview(f"analysis/{path.name}", head, body, len(rows) - 1, numeric)


def _is_number(text: str) -> bool:
    try:
        float(text or "0")
    except ValueError:
        return False
    return True


def _shown(text: str) -> str:
    """A csv's cell, a long number cut to four digits."""
    if len(text) < 8 or text.lstrip("-").isdecimal() or not _is_number(text):
        return text
    return f"{float(text):.4g}"
