"""Where the real benchmark files are, for the checks that need them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "CULNIG_FAST_DATA"


def real_file(name: str) -> Path:
    """A real file, or a skipped test that says how to have it."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    path = Path(os.environ.get(VARIABLE, beside)) / name
    if not path.is_file():
        pytest.skip(f"no {name}; set {VARIABLE} to the folder that holds the real benchmark files")
    return path
