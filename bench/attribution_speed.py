#!/usr/bin/env python3
"""What attribution costs beside the model's own pass, method by method, each checked before it is timed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from harness.front import add_methods, add_output, command, run_command, say

EXAMPLE = """example:
  python bench/attribution_speed.py --device cpu          the small shape, under two minutes
  python bench/attribution_speed.py --device cuda --shape llama-3.1-8b --json 8b.json
  python bench/attribution_speed.py --methods bare taps --sweep tokens

Exits with 1 when a method was refused for wrong scores or failed, with 2 on bad input."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command(__doc__, EXAMPLE)
    result.add_argument("--shape", help="model by name (default: tiny on the CPU, llama-3.1-8b on a GPU)")
    add_methods(result, repeats=5)
    result.add_argument("--sweep", choices=("tokens", "size"), help="repeat over batch tokens or over models")
    result.add_argument(
        "--kernels",
        choices=("with", "alone", "without"),
        default="with",
        help="on a GPU, bytes a second of single kernels (default: %(default)s the table)",
    )
    add_output(result)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    return run_command(parser(), "harness.run", arguments, say)


if __name__ == "__main__":
    sys.exit(main())
