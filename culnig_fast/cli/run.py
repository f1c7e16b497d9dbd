"""`run`: every stage of one config, from scores to tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from culnig_fast.cli.app import app
from culnig_fast.cli.options import Device, Json, Quiet, quiet_libraries, report
from culnig_fast.errors import CulnigError


@app.command(
    epilog="Examples: culnig-fast run demo --out runs/demo-run; culnig-fast run gemma-3-12b-it --dry-run; "
    "culnig-fast run my-run.yaml --compare paper"
)
def run(
    config: Annotated[str, typer.Argument(help="A yaml file, or the name of a preset, e.g. demo.")],
    out: Annotated[Optional[Path], typer.Option(help="Folder to write to, instead of the config's.")] = None,
    device: Device = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and how long it takes.")] = False,
    compare: Annotated[Optional[str], typer.Option(help="'paper': put the published figures beside.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score, select, evaluate under every intervention, and write the tables.

    What is done with the same inputs is skipped, what changed is done again, what was interrupted is continued: start
    the same command again. A config can build on a preset (`preset: gemma-3-12b-it`) and name only what differs.
    """
    if compare not in (None, "paper"):
        raise CulnigError(f"--compare {compare!r} is unknown; there is paper")
    from culnig_fast.pipeline.reading import load_config

    checked = load_config(config, out=out, device=device)
    quiet_libraries()
    if dry_run:
        _dry_run(checked, compare is not None, as_json)
        return
    from culnig_fast.pipeline.reporting import read_summary
    from culnig_fast.pipeline.run import run as run_all

    steps = run_all(checked, compare=compare is not None, progress=not quiet)
    done = [step for step in steps if step.why is not None]
    summary = {
        "out": str(checked.out),
        "done": [step.stage.name for step in done],
        "skipped": [step.stage.name for step in steps if step.why is None],
        **read_summary(checked.out),
    }
    main = (checked.out / "tables" / "main.md").read_text(encoding="utf-8")
    counts = f"{len(done)} stages done, {len(steps) - len(done)} already were"
    report(as_json, summary, f"{main}\n{counts}; everything is under {checked.out}, tables in its folder tables")


def _dry_run(config: Any, compare: bool, as_json: bool) -> None:
    from culnig_fast.pipeline.estimate import estimate
    from culnig_fast.pipeline.run import outlook
    from culnig_fast.pipeline.workbench import Workbench

    bench = Workbench(config, progress=False)
    steps = list(outlook(bench, compare=compare))
    pending = [step for step in steps if step.why is not None]
    needs_model = any(step.stage.size is not None for step in pending)
    seconds = estimate(bench, pending) if needs_model else {"total": 0.0}
    value = {
        "out": str(config.out),
        "would_do": [{"stage": step.stage.name, "why": step.why} for step in pending],
        "would_skip": [step.stage.name for step in steps if step.why is None],
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }
    lines = [f"{step.stage.name:40s} {step.why or 'done already'}" for step in steps]
    lines.append(f"{len(pending)} of {len(steps)} stages to do")
    if pending:
        kinds = ", ".join(f"{name} {_spoken(value)}" for name, value in seconds.items() if name != "total" and value)
        lines.append(f"about {_spoken(seconds['total'])} by one measured batch of each kind ({kinds or 'no passes'})")
    report(as_json, value, "\n".join(lines))


def _spoken(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
