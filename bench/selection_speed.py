#!/usr/bin/env python3
"""What selecting neurons costs beside reading the tables once, implementation by implementation, each checked first."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLE = """example:
  python bench/selection_speed.py                                   four to five minutes, 8 GiB of memory
  python bench/selection_speed.py --neurons 100000 1000000          seconds
  python bench/selection_speed.py --json selection.json

Exits with 1 when an implementation chose other neurons than a stable sort, with 2 on bad input."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        "--neurons", nargs="+", type=int, default=[100_000, 1_000_000, 3_200_000, 10_000_000], metavar="N"
    )
    result.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    result.add_argument("--threads", type=int, default=2, help="most threads (default: 2)")
    result.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    result.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = parser().parse_args(arguments)
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from harness.selection.run import run

    from culnig_fast.errors import CulnigError

    try:
        return run(options)
    except CulnigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
