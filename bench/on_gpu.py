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
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.front import command, say

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = """example:
  python bench/on_gpu.py --into results --minutes 9
  python bench/on_gpu.py --into results --steps kernels speed-8b --archive results.tar.gz

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


_IMPORTS = "torch", "triton", "transformers", "safetensors", "pybind11", "pytest", "xdist", "hypothesis"
_LOOK = (
    "import importlib, platform, torch; "
    f"print('python', platform.python_version()); "
    f"[print(n, getattr(importlib.import_module(n), '__version__', '')) for n in {_IMPORTS}]; "
    "print(torch.cuda.get_device_name()); import culnig_fast, culnig_kernels"
)
_ON_THE_CPU = ("native", "cpu", "allocate", "compile", "sanitizer")
"""Of the kernels' tests, those that launch nothing, or under another program and for minutes."""


def _tests(*paths: str, processes: int = 0) -> tuple[str, ...]:
    # Kernels are compiled by the process that launches them: that takes longer than the tests.
    parallel = ("-n", str(processes), "--dist", "worksteal") if processes else ()
    return ("-m", "pytest", "-q", "--maxfail=20", *parallel, *(f"tests/{path}" for path in paths))


def _speed(shape: str, *further: str) -> tuple[str, ...]:
    return ("bench/attribution_speed.py", "--device", "cuda", "--shape", shape, "--kernels", "without", *further)


_FIRST = ("--methods", "hooks", "kernels", "fused")
_OURS = ("--methods", "taps", "fused", "--repeats", "3")
_8B, _27B = ("llama-3.1-8b", "--tokens", "8192"), ("gemma-3-27b",)  # the latter at what the bare pass has room for
STEPS = (
    Step("imports", ("-c", _LOOK), 60),
    Step("rates", ("bench/attribution_speed.py", "--device", "cuda", "--kernels", "alone"), 90, measures=True),
    Step("speed-8b", _speed(*_8B, *_FIRST), 120, measures=True),
    Step("speed-27b", _speed(*_27B, *_FIRST, "--repeats", "3"), 180, measures=True),
    Step("build", ("setup.py", "-q", "build_ext", "--inplace"), 120),
    Step(
        "kernels",
        (*_tests("kernels", processes=12), *(f"--ignore=tests/kernels/test_{name}.py" for name in _ON_THE_CPU)),
        180,
    ),
    Step("engine", _tests("fused", "test_fidelity.py", processes=8), 180),
    Step("others-8b", _speed(*_8B, "--methods", "authors", "compile", "captum", "fused", "--repeats", "2"), 180, True),
    Step("speed-0.6b", _speed("qwen3-0.6b"), 120, measures=True),
    Step("host", ("bench/host_time.py", "--device", "cuda"), 120, measures=True),
    Step("lengths", ("bench/lengths.py", "--device", "cuda"), 90, measures=True),
    Step("tokens", _speed(*_8B, "--sweep", "tokens", *_OURS), 120, measures=True),
    Step("peers", ("bench/peers.py", "--device", "cuda", "--shape", "llama-3.1-8b", "--tokens", "4096"), 180, True),
    Step("fused-27b", _speed(*_27B, "--tokens", "8192", "--methods", "fused", "--repeats", "3"), 150, measures=True),
    Step("others-27b", _speed(*_27B, "--methods", "authors", "taps", "--repeats", "1"), 180, measures=True),
    Step("size", _speed("llama-3.1-8b", "--sweep", "size", *_OURS), 300, measures=True),
    Step("sanitizer", _tests("kernels/test_sanitizer.py"), 300),
)
"""By what is wanted first where time is short; without the first nothing else would run."""


def run_step(step: Step, into: Path, seconds: float) -> str:
    """`passed`, `failed (STATUS)` or `out of time`; what it printed is in its log."""
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Where there is no GPU the tests say so instead of passing on something else.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRITON_INTERPRET": "0"}
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the commands do, for deterministic attention
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


def run_steps(steps: Sequence[Step], into: Path, seconds: float, archive: Path | None = None) -> dict[str, str]:
    """What became of each step; those for which less than a quarter of their time is left are not begun.

    Args:
        steps: in this order.
        into: folder of logs and figures.
        seconds: for all.
        archive: one file of everything so far, renewed after every step.
    """
    end, found = time.monotonic() + seconds, dict[str, str]()
    for step in steps:
        left = end - time.monotonic()
        if left < step.seconds / 4 or found.get("imports", "passed") != "passed":
            found[step.name] = "not begun"
        else:
            began = time.monotonic()
            say(f"{step.name}: at most {min(left, step.seconds):.0f} s")
            found[step.name] = run_step(step, into, min(left, step.seconds))
            say(f"{step.name}: {found[step.name]}, {time.monotonic() - began:.0f} s")
            for line in step.files(into)[0].read_text(errors="replace").splitlines()[-12:]:
                say(f"    {line}")
            if archive is not None:
                _pack([path for done in steps for path in done.files(into) if path.exists()], archive)
    return found


def _pack(files: Sequence[Path], archive: Path) -> None:
    temporary = archive.with_name(f".{archive.name}.part")
    with tarfile.open(temporary, "w:gz") as out:
        for path in files:
            out.add(path, path.name)
    temporary.replace(archive)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; returns the exit status."""
    names = [step.name for step in STEPS]
    parser = command(__doc__, EXAMPLE)
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="where logs and figures go")
    parser.add_argument("--minutes", type=float, default=30.0, help="for all together (default: %(default)s)")
    parser.add_argument("--steps", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument(
        "--archive", type=Path, metavar="FILE.tar.gz", help="also one file of all, renewed step by step"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace logs and figures that are there")
    options: argparse.Namespace = parser.parse_args(arguments)
    chosen = [step for step in STEPS if not options.steps or step.name in options.steps]
    if options.into.exists() and not options.into.is_dir():
        parser.error(f"--into {options.into} is no folder; give another")
    there = [path for step in chosen for path in step.files(options.into) if path.exists()]
    there += [options.archive] if options.archive is not None and options.archive.exists() else []
    if there and not options.overwrite:
        parser.error(f"{there[0]} exists; give another --into, or --overwrite")
    options.into.mkdir(parents=True, exist_ok=True)
    found = run_steps(chosen, options.into.resolve(), 60 * options.minutes, options.archive)
    for name, outcome in found.items():
        print(f"{name:12} {outcome}")
    return int(any(outcome != "passed" for outcome in found.values()))


if __name__ == "__main__":
    sys.exit(main())
