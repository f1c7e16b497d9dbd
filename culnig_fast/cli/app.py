"""The application that every command registers with."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Find the neurons behind a language model's cultural understanding, and see what breaks without them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
