#!/usr/bin/env python3
"""What streamed attribution costs beside the model in memory: time and peak resident memory, checked before timing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.front import add_output, command, run_command

EXAMPLE = """example:
  python bench/streaming.py                                     4.9 GB of weights on disk, 8 GiB of memory
  python bench/streaming.py --hidden 256 --layers 6 --tokens 512 --blocks 128 512       about a minute
  python bench/streaming.py --json streaming.json

Exits with 1 when streamed scores differed from those in memory, with 2 on bad input."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command(__doc__, EXAMPLE)
    result.add_argument("--hidden", type=int, default=2048, help="hidden size, a multiple of 64 (default: 2048)")
    result.add_argument("--layers", type=int, default=16, help="decoder layers (default: 16)")
    result.add_argument("--vocabulary", type=int, default=64_000, help="words (default: 64000)")
    result.add_argument("--tokens", type=int, default=8192, help="tokens scored in all (default: 8192)")
    result.add_argument("--length", type=int, default=128, help="tokens of a sample (default: 128)")
    result.add_argument("--batch-tokens", type=int, default=512, help="tokens a batch (default: 512)")
    result.add_argument(
        "--blocks", nargs="+", type=int, default=[1024, 4096, 8192], metavar="N", help="tokens a streamed block"
    )
    result.add_argument("--path", choices=("auto", "taps"), default="auto", help="fused layers or taps (default: auto)")
    result.add_argument("--rounds", type=int, default=1, help="interleaved rounds (default: 1)")
    result.add_argument("--threads", type=int, default=2, help="threads (default: 2)")
    result.add_argument("--folder", type=Path, help="where the checkpoint is written and removed (default: temporary)")
    add_output(result)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    return run_command(parser(), "harness.streaming.run", arguments)


if __name__ == "__main__":
    sys.exit(main())
