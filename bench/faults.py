#!/usr/bin/env python3
"""What large runs meet, done to real runs on purpose: killed processes, lost ranks, memory that runs out, and more."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from harness.front import add_output, command, say, status

EXAMPLE = """example:
  python bench/faults.py --list                        the parts
  python bench/faults.py memory ranks --json faults.json
  python bench/faults.py --quick                       every part at a small size

Exits with 1 when a part did not end as it must, with 2 on bad input."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; returns the exit status."""
    parser = command(__doc__, EXAMPLE)
    parser.add_argument("parts", nargs="*", metavar="PART", help="which (default: all)")
    parser.add_argument("--quick", action="store_true", help="at a small size, to see that it works")
    add_output(parser)
    parser.add_argument("--list", action="store_true", help="list the parts and stop")
    return status(run, parser.parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """Run the parts that are asked for; 1 when one did not end as it must. Imports torch only when it runs one."""
    from harness.faults import parts

    from culnig_fast.errors import CulnigError
    from culnig_fast.files import refuse_existing, write_json

    known = parts()
    if options.list:
        for name, part in known.items():
            print(f"{name:10s} {part.TITLE}")
        return 0
    if unknown := [name for name in options.parts if name not in known]:
        raise CulnigError(f"no part {', '.join(unknown)}; there are {', '.join(known)}")
    if options.json is not None:
        refuse_existing(options.json, options.overwrite)
    import torch
    from harness.environment import environment

    record = {"environment": environment(torch.device("cpu")), "quick": options.quick, "parts": {}}
    for name in options.parts or known:
        say(f"{name}: {known[name].TITLE}")
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            figures = known[name].run(Path(folder), options.quick, lambda text: say(f"  {text}"))
        record["parts"][name] = {**figures, "seconds": round(time.perf_counter() - start, 1)}
        print(f"{name}: {'passed' if figures['passed'] else 'FAILED'}", flush=True)
        if options.json is not None:  # after each part: the next may take hours, or fail
            write_json(options.json, record, overwrite=True)
    return 0 if all(figures["passed"] for figures in record["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
