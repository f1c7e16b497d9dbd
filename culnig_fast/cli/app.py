"""The application that every command registers with."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from culnig_fast.errors import Interrupted


class _Commands(TyperGroup):
    """Says what a signal ended in; left to itself, the library would say `Aborted`."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            raise typer.Exit(128 + stop.number) from None
        except KeyboardInterrupt:
            print("interrupted; the same command continues where it can, and nothing was overwritten", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    help="Find the neurons behind a language model's cultural understanding, and see what breaks without them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
