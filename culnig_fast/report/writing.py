"""The page as a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from culnig_fast.files import refuse_existing, write_text
from culnig_fast.report.figures import Described
from culnig_fast.report.page import render
from culnig_fast.report.reading import read_run

PAGE = "report.html"


def write_report(
    run: str | Path,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    plots: Mapping[str, Described] | None = None,
) -> Path:
    """Write one self-contained HTML page of a run's folder; atomic, and the same files give the same bytes.

    Args:
        run: the folder that `culnig-fast run` wrote to; what is missing in it is left out, and the page says so.
        out: the page; left out: `report.html` in the folder.
        overwrite: replace a page that exists.
        plots: titles, captions and descriptions of figures by name; left out: those of `analysis.catalogue`.

    Returns:
        the page's path.

    Raises:
        CulnigError: not a run's folder, a damaged file in it, or an output that exists or cannot be written.
    """
    path = Path(run) / PAGE if out is None else Path(out)
    files = read_run(run)
    refuse_existing(path, overwrite)
    if plots is None:
        from culnig_fast.analysis.catalogue import PLOTS

        plots = PLOTS
    write_text(path, render(files, plots), overwrite)
    return path
