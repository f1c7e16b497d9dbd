"""The command line: one subcommand a stage, one file each; importing a file registers its commands.

Everything heavier than typer is imported inside the commands: help comes up without torch.
"""

from __future__ import annotations

import importlib
import sys

from culnig_fast.cli.app import app
from culnig_fast.errors import CulnigError

COMMANDS = (
    "tasks",
    "score",
    "select",
    "baseline",
    "evaluate",
    "answer",
    "ablate",
    "modules",
    "finetune",
    "model",
    "convert",
    "run",
    "demo",
)
"""Files of commands, in the order in which help lists them."""

for _name in COMMANDS:
    importlib.import_module(f"culnig_fast.cli.{_name}")


def main() -> None:
    """Run a command; bad input ends in one sentence and exit code 1, an interrupt in 130."""
    try:
        app()
    except CulnigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(
            "interrupted; the same command continues where it can, and nothing was overwritten",
            file=sys.stderr,
        )
        sys.exit(130)
