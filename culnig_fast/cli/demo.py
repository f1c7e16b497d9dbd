"""`demo`: the whole job on the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from culnig_fast.cli.app import app
from culnig_fast.cli.options import (
    Json,
    Overwrite,
    Quiet,
    quiet_libraries,
    report,
)
from culnig_fast.files import refuse_existing


@app.command(epilog="Example: culnig-fast demo --out runs/demo --overwrite")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is written.")] = Path("runs/demo"),
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score, select, suppress and evaluate on the embedded model, in about a minute."""
    refuse_existing(out / "demo.json", overwrite)
    quiet_libraries()
    from culnig_fast.demo.run import format_report, run_demo

    result = run_demo(out, progress=not quiet)
    report(as_json, result, format_report(result))
