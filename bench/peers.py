#!/usr/bin/env python3
"""Other libraries and ours side by side: the same neurons' scores, their time, peak memory and lines of user code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  python bench/peers.py                                            two shapes, four minutes on two cores
  python bench/peers.py --shape tiny --methods captum layers attributor --json peers.json
  python bench/peers.py --device cuda --shape llama-3.1-8b

What each row runs is one function, in bench/harness/peers/methods/. Exits with 1 when a row was refused for wrong
scores or failed, with 2 on bad input."""


def parser() -> argparse.ArgumentParser:
    """The command line; importing torch waits until it has been read."""
    result = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    result.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16, float32 on cpu")
    result.add_argument(
        "--shape",
        nargs="+",
        metavar="NAME",
        help="models by name (default: tiny-narrow tiny, on a GPU qwen3-0.6b llama-3.1-8b)",
    )
    result.add_argument("--tokens", type=int, help="tokens a batch, padding included (default: 2048, 16384 on a GPU)")
    result.add_argument("--length", type=int, default=128, help="tokens of the longest sample (default: 128)")
    result.add_argument("--methods", nargs="+", metavar="NAME", help="rows of the table (default: all); bare is added")
    result.add_argument("--repeats", type=int, default=3, metavar="N", help="interleaved rounds (default: 3)")
    result.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's own)")
    result.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    result.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    result.add_argument("--list", action="store_true", help="list shapes and methods and stop")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = parser().parse_args(arguments)
    # After parsing, so that --help is quick.
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from harness.peers.run import run

    from culnig_fast.errors import CulnigError

    try:
        return run(options, _say)
    except CulnigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _say(text: Any) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
