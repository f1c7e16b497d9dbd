"""`demo`: the whole job on the embedded model, from scores to the report page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from culnig_fast.cli.app import app
from culnig_fast.cli.options import Json, Quiet, quiet_libraries, report


@app.command(epilog="Example: culnig-fast demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is written.")] = Path("runs/demo"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the preset demo and write its report: score, select, suppress, evaluate and look, in about two minutes.

    What is done already is not done again.
    """
    from culnig_fast.pipeline.reading import load_config

    config = load_config("demo", out=out)
    quiet_libraries()
    from culnig_fast.pipeline.reporting import read_summary
    from culnig_fast.pipeline.run import run, seconds_spent
    from culnig_fast.report.writing import write_report

    run(config, progress=not quiet)
    page = write_report(config.out, overwrite=True)
    seconds = round(seconds_spent(config.out), 1)
    main = (config.out / "tables" / "main.md").read_text(encoding="utf-8")
    summary = {"out": str(config.out), "report": str(page), "seconds": seconds, **read_summary(config.out)}
    report(as_json, summary, f"{main}\n{seconds} s in all stages; everything is under {config.out}. Look at {page}")
