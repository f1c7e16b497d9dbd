#!/usr/bin/env python3
"""Every reader on damaged files: it returns, or raises CulnigError in one sentence, and writes nothing.

Starts from small whole files that it makes itself, in memory. The same seed gives the same examples.

    python bench/harness/faults/fuzz.py --examples 100000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from harness.faults.damaged import fuzzed
from harness.faults.targets import readers

TITLE = "every reader and command on 100,000 damaged files: read, or refused in one sentence, and nothing written"

EXAMPLES = 101_000
"""Some readers get whole numbers of few files; what rounding takes must not fall below 100,000."""


def run(folder: Path, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Damage files and read them; `folder` is not needed."""
    result = fuzzed(2_000 if quick else EXAMPLES, progress=sys.stderr.isatty())
    say(
        f"{result['examples']:,} files for {len(result['readers'])} readers: {result['refused']:,} refused, "
        f"{result['read']:,} read, {result['findings']} findings"
    )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it alone; 1 when there are findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100_000, metavar="N", help="about how many (default: 100000)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: 0)")
    parser.add_argument("--reader", nargs="+", default=(), metavar="NAME", help="only these readers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--list", action="store_true", help="list the readers and stop")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(reader.name for reader in readers()))
        return 0
    result = fuzzed(options.examples, options.seed, options.reader, progress=sys.stderr.isatty())
    for name, count in result["readers"].items():
        line = ", ".join(f"{value:,} {key}" for key, value in count.items())
        print(f"{name:26s} {line}")
    for finding in result["first_findings"]:
        print(f"\n── {finding['reader']}, example {finding['example']}, file {finding['file']}\n{finding['report']}")
    print(f"{result['examples']:,} files in {result['seconds']:.0f} s, {result['findings']} findings")
    if options.json is not None:
        from culnig_fast.files import write_json

        write_json(options.json, result, overwrite=True)
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
