#!/usr/bin/env python3
"""What selecting neurons costs beside reading the tables once, implementation by implementation, each checked first."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from harness.front import add_output, command, run_command

EXAMPLE = """example:
  python bench/selection_speed.py                                   four to five minutes, 8 GiB of memory
  python bench/selection_speed.py --neurons 100000 1000000          seconds
  python bench/selection_speed.py --json selection.json

Exits with 1 when an implementation chose other neurons than a stable sort, with 2 on bad input."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command(__doc__, EXAMPLE)
    result.add_argument(
        "--neurons", nargs="+", type=int, default=[100_000, 1_000_000, 3_200_000, 10_000_000], metavar="N"
    )
    result.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    result.add_argument("--threads", type=int, default=2, help="most threads (default: 2)")
    add_output(result)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    return run_command(parser(), "harness.selection.run", arguments)


if __name__ == "__main__":
    sys.exit(main())
