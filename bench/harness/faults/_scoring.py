"""The command that the parts disturb: scoring the embedded model's questions."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from culnig_fast.scores import ScoreTable


def command(out: Path, *options: str, split: str = "all") -> list[str]:
    """Arguments after `python`."""
    given = ["score", "demo", "--data", "demo", "--split", split, "--device", "cpu", "--quiet", "--out", str(out)]
    return ["-m", "culnig_fast.cli", *given, *options]


def timed(arguments: list[str], **variables: str) -> float:
    """Run to the end, with these variables in its environment; seconds. CalledProcessError when it fails."""
    start, environment = time.perf_counter(), {**os.environ, **variables}
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, env=environment)
    return time.perf_counter() - start


def distance(table: ScoreTable, whole: ScoreTable) -> float:
    """Largest difference of a total, as a share of the largest total."""
    return float(np.abs(table.totals - whole.totals).max() / np.abs(whole.totals).max())


def sentence(errors: str) -> str:
    """The line that the command ended in, of all that its processes wrote."""
    lines = [line for line in errors.splitlines() if line.startswith(("error:", "stopped by"))]
    return lines[-1] if lines else ""


def quietly(process: subprocess.Popen[Any]) -> tuple[int, str]:
    """Wait; exit status and what it wrote to standard error."""
    _, errors = process.communicate()
    return process.returncode, errors
