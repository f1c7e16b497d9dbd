#!/usr/bin/env python3
"""All that needs a GPU, one after the other within a given time: the tests that launch kernels, then every figure.

For a machine that is lent for minutes and has an environment of its own: nothing is installed, the C++ code is
built in place. Each step is a process of its own with a limit; one that fails or runs out of time stops no other.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.front import command, say

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = """example:
  python bench/on_gpu.py --into results --minutes 9
  python bench/on_gpu.py --into results --steps kernels speed-8b

A step NAME leaves NAME.log and, where it measures, NAME.json.
Exits with 1 when a step failed or was not run, with 2 on bad input."""


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: of its files.
        arguments: of Python.
        seconds: it is ended after so many.
        measures: it takes --json FILE.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: int
    measures: bool = False

    def files(self, into: Path) -> list[Path]:
        """Its log and, where it measures, its figures."""
        return [into / f"{self.name}.log", *([into / f"{self.name}.json"] if self.measures else [])]


def _tests(*paths: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "--maxfail=20", *(f"tests/{path}" for path in paths))


def _speed(shape: str, *further: str) -> tuple[str, ...]:
    return ("bench/attribution_speed.py", "--device", "cuda", "--shape", shape, *further)


_OURS = ("--methods", "taps", "fused", "--repeats", "3")
STEPS = (
    Step("build", ("setup.py", "-q", "build_ext", "--inplace"), 120),
    Step("kernels", _tests("kernels"), 180),
    Step("speed-8b", _speed("llama-3.1-8b", "--tokens", "8192"), 300, measures=True),
    Step("speed-27b", _speed("gemma-3-27b", "--repeats", "3"), 300, measures=True),
    Step("engine", _tests("fused", "test_fidelity.py"), 180),
    Step("speed-0.6b", _speed("qwen3-0.6b"), 120, measures=True),
    Step("host", ("bench/host_time.py", "--device", "cuda"), 120, measures=True),
    Step("tokens", _speed("llama-3.1-8b", "--tokens", "8192", "--sweep", "tokens", *_OURS), 120, measures=True),
    Step("peers", ("bench/peers.py", "--device", "cuda", "--shape", "llama-3.1-8b", "--tokens", "4096"), 180, True),
    Step("size", _speed("llama-3.1-8b", "--sweep", "size", *_OURS), 300, measures=True),
)
"""By what is wanted first where time is short."""


def run_step(step: Step, into: Path, seconds: float) -> str:
    """`passed`, `failed (STATUS)` or `out of time`; what it printed is in its log."""
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Where there is no GPU the tests say so instead of passing on something else.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRITON_INTERPRET": "0"}
    arguments, (printed, *figures) = [sys.executable, *step.arguments], step.files(into)
    for file in figures:
        arguments += ["--json", str(file), "--overwrite"]
    with printed.open("w") as log:
        # A session of its own, so that what it started ends with it.
        process = subprocess.Popen(
            arguments, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return "out of time"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return "passed" if status == 0 else f"failed ({status})"


def run_steps(steps: Sequence[Step], into: Path, seconds: float) -> dict[str, str]:
    """What became of each step; those for which less than a quarter of their time is left are not begun."""
    end, found = time.monotonic() + seconds, {}
    for step in steps:
        left = end - time.monotonic()
        if left < step.seconds / 4:
            found[step.name] = "not begun"
        else:
            began = time.monotonic()
            say(f"{step.name}: at most {min(left, step.seconds):.0f} s")
            found[step.name] = run_step(step, into, min(left, step.seconds))
            say(f"{step.name}: {found[step.name]}, {time.monotonic() - began:.0f} s")
            for line in step.files(into)[0].read_text(errors="replace").splitlines()[-12:]:
                say(f"    {line}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; returns the exit status."""
    names = [step.name for step in STEPS]
    parser = command(__doc__, EXAMPLE)
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="where logs and figures go")
    parser.add_argument("--minutes", type=float, default=30.0, help="for all together (default: %(default)s)")
    parser.add_argument("--steps", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--overwrite", action="store_true", help="replace logs and figures that are there")
    options: argparse.Namespace = parser.parse_args(arguments)
    chosen = [step for step in STEPS if not options.steps or step.name in options.steps]
    if options.into.exists() and not options.into.is_dir():
        parser.error(f"--into {options.into} is no folder; give another")
    there = [path for step in chosen for path in step.files(options.into) if path.exists()]
    if there and not options.overwrite:
        parser.error(f"{there[0]} exists; give another --into, or --overwrite")
    options.into.mkdir(parents=True, exist_ok=True)
    found = run_steps(chosen, options.into.resolve(), 60 * options.minutes)
    for name, outcome in found.items():
        print(f"{name:12} {outcome}")
    return int(any(outcome != "passed" for outcome in found.values()))


if __name__ == "__main__":
    sys.exit(main())
