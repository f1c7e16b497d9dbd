"""What the benchmarks' commands begin and end with; torch is not imported here, so that --help is quick."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def command(about: str | None, example: str) -> argparse.ArgumentParser:
    """A command line that shows its example."""
    return argparse.ArgumentParser(
        description=about, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_methods(parser: argparse.ArgumentParser, repeats: int) -> None:
    """Options of a benchmark that times methods side by side on one batch."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16, float32 on cpu")
    parser.add_argument(
        "--tokens",
        type=int,
        help="tokens a batch, padding included (default: 2048; on a GPU at most 16384, as memory allows)",
    )
    parser.add_argument("--length", type=int, default=128, help="tokens of the longest sample (default: 128)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="rows of the table (default: all); bare is added")
    parser.add_argument(
        "--repeats", type=int, default=repeats, metavar="N", help="interleaved rounds (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's own)")
    parser.add_argument("--list", action="store_true", help="list shapes and methods and stop")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where the figures go."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")


def run_command(parser: argparse.ArgumentParser, module: str, arguments: Sequence[str] | None, *further: Any) -> int:
    """Parse, then run the `run` of a module, which is imported only then, so that --help is quick; the exit status.

    Args:
        parser: of the command.
        module: by name.
        arguments: None are the process's.
        further: what `run` takes beside the options.
    """
    options = parser.parse_args(arguments)
    return status(importlib.import_module(module).run, options, *further)


def status(run: Callable[..., int], *arguments: Any) -> int:
    """What `run` returns; 2, and its sentence on standard error, where it refuses."""
    from culnig_fast.errors import CulnigError

    try:
        return run(*arguments)
    except CulnigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def say(text: Any) -> None:
    """Progress, on standard error at once."""
    print(text, file=sys.stderr, flush=True)
