#!/usr/bin/env python3
"""How long the host takes to ask for one layer's work, forward and backward, method by method.

A GPU hides it as long as a layer takes longer to compute than to ask for. Models here have no width, so asking is all
that is timed. Without a GPU the Triton kernels' launches lead to a device that does nothing, and all before that is
real; the rest of the work, of tensors of a few elements, is done on the CPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from harness.front import add_output, command, run_command

EXAMPLE = """example:
  python bench/host_time.py                                      half a minute
  python bench/host_time.py --shapes llama-3.1-8b --methods kernels fused --json host_time.json

Exits with 2 on bad input."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command(__doc__, EXAMPLE)
    result.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    result.add_argument(
        "--shapes",
        nargs="+",
        default=["qwen3-0.6b", "llama-3.1-8b", "gemma-3-27b"],
        metavar="NAME",
        help="published models, made narrow (default: %(default)s)",
    )
    result.add_argument(
        "--methods",
        nargs="+",
        default=["hooks", "kernels", "fused"],
        metavar="NAME",
        help="beside bare (default: %(default)s)",
    )
    result.add_argument(
        "--depths", nargs=2, type=int, default=[4, 20], metavar="N", help="layers of the two models (default: 4 20)"
    )
    result.add_argument(
        "--repeats", type=int, default=60, metavar="N", help="interleaved rounds (default: %(default)s)"
    )
    add_output(result)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    return run_command(parser(), "harness.host.run", arguments)


if __name__ == "__main__":
    sys.exit(main())
