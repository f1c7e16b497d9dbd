"""`report`: one page of a run, to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from culnig_fast.cli.app import app
from culnig_fast.cli.options import Json, Overwrite
from culnig_fast.cli.options import report as print_result


@app.command(epilog="Example: culnig-fast report runs/demo-run --out demo.html")
def report(
    run: Annotated[Path, typer.Argument(help="The folder that 'culnig-fast run' wrote to.")],
    out: Annotated[Optional[Path], typer.Option(help="The page; left out: report.html in the run's folder.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write one HTML page of a run: tables, figures, neurons and their samples; it needs no network and no server."""
    from culnig_fast.report.writing import write_report

    path = write_report(run, out, overwrite=overwrite)
    size = path.stat().st_size
    print_result(as_json, {"path": str(path), "bytes": size}, f"{path} ({size / 1e6:.2f} MB); open it in a browser")
