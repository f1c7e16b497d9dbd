"""The command line: one subcommand a stage, one file each; importing a file registers its commands.

Everything heavier than typer is imported inside the commands: help comes up without torch.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import TextIO

from culnig_fast.cli.app import app
from culnig_fast.errors import CulnigError, CulnigWarning

COMMANDS = (
    "tasks",
    "score",
    "select",
    "baseline",
    "evaluate",
    "answer",
    "lm_eval",
    "ablate",
    "modules",
    "finetune",
    "model",
    "plan",
    "convert",
    "run",
    "report",
    "demo",
)
"""Files of commands, in the order in which help lists them."""

for _name in COMMANDS:
    importlib.import_module(f"culnig_fast.cli.{_name}")


def main() -> None:
    """Run a command; bad input ends in one sentence and exit code 1, a signal in 128 and its number."""
    # Before torch uses a card: the same command gives the same bits there too (see `attention`).
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            app()
        except CulnigError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except OSError as error:  # a path that the system refuses before any reader sees it, e.g. one that is too long
            print(f"error: {CulnigError(f'{error}; check the path')}", file=sys.stderr)
            sys.exit(1)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: str | None = None,
) -> None:  # fmt: skip
    """Ours as one line, once for all processes of a job; others with the place in the code, as Python shows them."""
    if not issubclass(category, CulnigWarning):
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=file or sys.stderr)
    elif os.environ.get("RANK", "0") == "0":
        print(f"warning: {message}", file=file or sys.stderr)
