#!/usr/bin/env python3
"""What a batch of a new length costs, method by method: the benchmark's other tables run one shape again and again.

Questions have every length, so a data set's batches have hundreds of shapes. Whatever is planned or compiled anew for
each shows in its first step and in no later one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from harness.front import add_output, command, run_command, say

EXAMPLE = """example:
  python bench/lengths.py --device cpu
  python bench/lengths.py --device cuda --shape llama-3.1-8b --count 20 --json lengths.json

Exits with 2 on bad input."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command(__doc__, EXAMPLE)
    result.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    result.add_argument("--shape", help="model by name (default: tiny on the CPU, llama-3.1-8b on a GPU)")
    result.add_argument("--tokens", type=int, help="tokens a batch (default: 1024 on the CPU, 8192 on a GPU)")
    result.add_argument("--count", type=int, default=12, help="lengths (default: %(default)s)")
    result.add_argument(
        "--methods", nargs="+", default=["bare", "hooks", "fused"], metavar="NAME", help="default: bare hooks fused"
    )
    add_output(result)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    return run_command(parser(), "harness.new_lengths", arguments, say)


if __name__ == "__main__":
    sys.exit(main())
