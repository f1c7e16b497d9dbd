#!/usr/bin/env python3
"""Other libraries and ours side by side: the same neurons' scores, their time, peak memory and lines of user code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from harness.front import add_methods, add_output, command, run_command, say

EXAMPLE = """example:
  python bench/peers.py                                            two shapes, four minutes on two cores
  python bench/peers.py --shape tiny --methods captum layers attributor --json peers.json
  python bench/peers.py --device cuda --shape llama-3.1-8b

What each row runs is one function, in bench/harness/peers/methods/. Exits with 1 when a row was refused for wrong
scores or failed, with 2 on bad input."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command(__doc__, EXAMPLE)
    result.add_argument(
        "--shape",
        nargs="+",
        metavar="NAME",
        help="models by name (default: tiny-narrow tiny, on a GPU qwen3-0.6b llama-3.1-8b)",
    )
    add_methods(result, repeats=3)
    add_output(result)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    return run_command(parser(), "harness.peers.run", arguments, say)


if __name__ == "__main__":
    sys.exit(main())
