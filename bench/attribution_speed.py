#!/usr/bin/env python3
"""What attribution costs beside the model's own pass, method by method, each checked before it is timed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  python bench/attribution_speed.py --device cpu          the small shape, under two minutes
  python bench/attribution_speed.py --device cuda --shape llama-3.1-8b --json 8b.json
  python bench/attribution_speed.py --methods bare taps --sweep tokens

Exits with 1 when a method was refused for wrong scores or failed, with 2 on bad input."""


def parser() -> argparse.ArgumentParser:
    """The command line; importing torch waits until it has been read."""
    result = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    result.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16, float32 on cpu")
    result.add_argument("--shape", help="model by name (default: tiny on the CPU, llama-3.1-8b on a GPU)")
    result.add_argument("--tokens", type=int, help="tokens a batch, padding included (default: 2048, 16384 on a GPU)")
    result.add_argument("--length", type=int, default=128, help="tokens of the longest sample (default: 128)")
    result.add_argument("--methods", nargs="+", metavar="NAME", help="rows of the table (default: all); bare is added")
    result.add_argument("--repeats", type=int, default=5, metavar="N", help="interleaved rounds (default: 5)")
    result.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's own)")
    result.add_argument("--sweep", choices=("tokens", "size"), help="repeat over batch tokens or over models")
    result.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    result.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    result.add_argument("--list", action="store_true", help="list shapes and methods and stop")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = parser().parse_args(arguments)
    # After parsing, so that --help is quick.
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from harness.run import run

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
