"""One run: write a checkpoint, check on a small one, time in interleaved rounds, print, write."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from culnig_fast.errors import CulnigError
from culnig_fast.files import refuse_existing, write_json
from harness.environment import environment
from harness.streaming.checkpoint import write_checkpoint

CHILD = Path(__file__).with_name("child.py")
LARGEST_ERROR = 1e-6
"""Of streamed totals against those in memory, as a share of the largest."""


def run(options: argparse.Namespace) -> int:
    """See `streaming.py`; 1 when streamed scores were wrong."""
    if options.hidden < 64 or options.hidden % 64:
        raise CulnigError(f"--hidden is {options.hidden}; give a multiple of 64")
    if min(options.layers, options.rounds, options.threads, options.batch_tokens, options.length, *options.blocks) < 1:
        raise CulnigError("--layers, --rounds, --threads, --batch-tokens, --length and --blocks are at least 1")
    if options.tokens < options.length or options.vocabulary < 16:
        raise CulnigError("--tokens must hold one sample of --length, and --vocabulary 16 words")
    if not Path("/proc/self/status").exists():
        raise CulnigError("peak resident memory is read from /proc, which this system lacks; run it on Linux")
    if options.json is not None:
        refuse_existing(options.json, options.overwrite)
    torch.set_num_threads(options.threads)
    document: dict[str, Any] = {"environment": environment(torch.device("cpu"))}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        small = folder / "small"
        write_checkpoint(small, 256, 3, 1000)
        checked = _checked(small, options)
        print(f"check on a small model: streamed totals differ by {checked:.1e} of the largest", flush=True)
        if not checked <= LARGEST_ERROR:
            return 1
        weights = write_checkpoint(folder / "large", options.hidden, options.layers, options.vocabulary)
        rows = _measure(folder, weights, options)
    document |= {"weights_bytes": weights, "small_check_error": checked, "rows": rows, "options": _plain(options)}
    _print(weights, rows)
    if options.json is not None:
        write_json(options.json, document, overwrite=options.overwrite)
    return int(not all(row["error"] <= LARGEST_ERROR for row in rows))


def _checked(folder: Path, options: argparse.Namespace) -> float:
    """Largest difference of streamed totals from those in memory, on a model of seconds."""
    job = _job(folder, options) | {"tokens": 512, "length": 32, "vocabulary": 1000, "batch_tokens": 128}
    for name, stream in (("memory", None), ("streamed", 256)):
        _child(job | {"stream_tokens": stream, "out": str(folder / f"{name}.npy")})
    return _error(folder / "streamed.npy", folder / "memory.npy")


def _measure(folder: Path, weights: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    job = _job(folder / "large", options)
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("in memory", {"stream_tokens": None, "recompute": False}),
        ("in memory, recomputed", {"stream_tokens": None, "recompute": True}),
        *((f"streamed, blocks of {n:,}", {"stream_tokens": n, "recompute": False}) for n in options.blocks),
    ]
    rows: list[dict[str, Any]] = [
        {"method": name, **kind, "seconds": [], "peak_bytes": 0, "error": 0.0} for name, kind in kinds
    ]
    for _ in range(options.rounds):
        for row, (name, kind) in zip(rows, kinds, strict=True):
            print(f"{name} …", file=sys.stderr, flush=True)
            out = folder / f"{rows.index(row)}.npy"
            got = _child(job | kind | {"out": str(out)})
            row["seconds"].append(got["seconds"])
            row["peak_bytes"] = max(row["peak_bytes"], got["peak_bytes"])
            row["bytes_before"], row["fusion"] = got["bytes_before"], got["fusion"]
            row["error"] = max(row["error"], _error(out, folder / "0.npy"))
    for row in rows:
        row["least_seconds"] = min(row["seconds"])
        row["time_over_recomputed"] = row["least_seconds"] / min(rows[1]["seconds"])
        row["peak_over_weights"] = row["peak_bytes"] / weights
        row["peak_without_libraries_over_weights"] = (row["peak_bytes"] - row["bytes_before"]) / weights
    return rows


def _job(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    names = ("tokens", "length", "vocabulary", "batch_tokens", "path", "threads")
    return {name: getattr(options, name) for name in names} | {"folder": str(folder), "recompute": False}


def _child(job: dict[str, Any]) -> dict[str, Any]:
    """What a process of its own measured."""
    variables = os.environ | {"OMP_NUM_THREADS": str(job["threads"]), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(CHILD), json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    if done.returncode:
        raise CulnigError(f"a measurement failed: {done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _error(got: Path, expected: Path) -> float:
    one, other = np.load(got), np.load(expected)
    return float(np.abs(one - other).max() / np.abs(other).max())


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name not in ("json", "overwrite", "folder")}


def _print(weights: int, rows: list[dict[str, Any]]) -> None:
    print(f"\n{weights / 1e9:.2f} GB of weights")
    print(f"{'method':28} {'seconds':>9} {'÷ recomputed':>13} {'peak GB':>8} {'÷ weights':>10} {'difference':>11}")
    for row in rows:
        print(
            f"{row['method']:28} {row['least_seconds']:9.1f} {row['time_over_recomputed']:13.3f} "
            f"{row['peak_bytes'] / 1e9:8.2f} {row['peak_over_weights']:10.3f} {row['error']:11.1e}"
        )
