"""A command run in this process, as the console script runs it."""

from __future__ import annotations

import sys

from culnig_fast import cli


def invoke(*arguments: object) -> int:
    """`culnig-fast ARGUMENTS`; its exit code."""
    old, sys.argv = sys.argv, ["culnig-fast", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = old
    return 0
