"""One run: each row checked, its memory measured, timed in rounds with the others, printed, written."""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from culnig_fast.errors import CulnigError
from culnig_fast.files import refuse_existing, write_json
from harness.batches import make_batch
from harness.budget import default_tokens
from harness.check import Checker
from harness.environment import environment
from harness.memory import METHOD as MEMORY_METHOD
from harness.options import check_numbers, chosen_device
from harness.peers.peer import PEERS
from harness.peers.table import format_rows, peer_rows
from harness.roofs import ProductRoof
from harness.rounds import Outcome, Say, check_all, time_all
from harness.shapes import SHAPES, build, size_of

CHILD = Path(__file__).with_name("child.py")
DEFAULT_SHAPES = {"cpu": ("tiny-narrow", "tiny"), "cuda": ("qwen3-0.6b", "llama-3.1-8b")}
RESIDENT = "most resident memory of a process of its own during one call, above what the loaded model left resident"


def run(options: argparse.Namespace, say: Say) -> int:
    """See `peers.py`; 1 when a row was refused or failed, else 0.

    Raises:
        CulnigError: an option names something that is not there, or the output exists.
    """
    if options.list:
        print("shapes: ", ", ".join(_possible_shapes()))
        for peer in PEERS.values():
            print(f"{peer.name:16} {peer.summary}")
        return 0
    if options.json is not None:
        refuse_existing(options.json, options.overwrite)
    device = chosen_device(options.device)
    name = options.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    shapes = tuple(dict.fromkeys(options.shape or DEFAULT_SHAPES[device.type]))
    _check_names(options, shapes)
    tokens = options.tokens or default_tokens(shapes, device, getattr(torch, name), options.length)
    check_numbers(options, tokens)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    samples = max(1, tokens // options.length)
    wanted = [peer for key, peer in PEERS.items() if not options.methods or key in {"bare", *options.methods}]
    document: dict[str, Any] = {"environment": environment(device), "rows": []}
    document["environment"] |= {"dtype": name, "memory": RESIDENT if device.type == "cpu" else MEMORY_METHOD["cuda"]}
    checked = {}
    for shape in shapes:
        say(f"{shape}: the truth in float64")
        checker = Checker(SHAPES[shape], device, getattr(torch, name), summed=True)
        checked[shape] = check_all(wanted, checker, say)
        del checker
        _free(device)
    job = {"dtype": name, "samples": samples, "length": options.length, "threads": torch.get_num_threads()}
    peaks = _resident_peaks(job, checked, say) if device.type == "cpu" else {}
    for shape, outcomes in checked.items():
        rows = _time(shape, outcomes, device, job, options.repeats, peaks, say)
        document["rows"] += rows
        print(f"\n{_title(shape, rows, name, device)}\n{format_rows(rows)}", flush=True)
        if options.json is not None:
            write_json(options.json, document, overwrite=True)  # what was there has been refused above
    return int(any(row["status"] in ("refused", "failed") for row in document["rows"]))


def _time(
    shape: str,
    outcomes: dict[str, Outcome],
    device: torch.device,
    job: dict[str, Any],
    rounds: int,
    peaks: dict[tuple[str, str], int],
    say: Say,
) -> list[dict[str, Any]]:
    """JSON-ready rows of one shape, timed in rounds."""
    dtype = getattr(torch, job["dtype"])
    model = build(SHAPES[shape], device, dtype)
    size = size_of(model)
    batch = make_batch(job["samples"], job["length"], model.config.vocab_size, device, n_groups=1)
    methods = [PEERS[name] for name in outcomes]
    rates = time_all(methods, outcomes, model, batch, ProductRoof(device, dtype), rounds, say)
    del model
    _free(device)
    return peer_rows(shape, outcomes, batch, size, rates, peaks if device.type == "cpu" else None)


def _resident_peaks(
    job: dict[str, Any], checked: dict[str, dict[str, Outcome]], say: Say
) -> dict[tuple[str, str], int]:
    """(Shape, row) → bytes, of the rows that passed on all shapes before; a dash where a process fails."""
    if not Path("/proc/self/clear_refs").exists():
        say("peak resident memory is read from /proc, which this system lacks: no memory figures")
        return {}
    peaks = {}
    for name in next(iter(checked.values())):
        shapes = [shape for shape, outcomes in checked.items() if outcomes[name].status == "timed"]
        if not shapes:
            continue
        say(f"memory of {name}")
        try:
            found = _child(job | {"method": name, "shapes": shapes})
        except CulnigError as error:
            say(str(error))
            continue
        peaks |= {(shape, name): peak for shape, peak in zip(shapes, found, strict=True)}
    return peaks


def _child(job: dict[str, Any]) -> list[int]:
    """What a process of its own measured."""
    variables = os.environ | {
        "OMP_NUM_THREADS": str(job["threads"]),
        "PYTHONWARNINGS": "ignore",
        # Blocks of the size of tensors go back to the system when freed, as on a fresh heap.
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    command = [sys.executable, str(CHILD), json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CulnigError(f"the memory of {job['method']} was not measured: {last[:300]}")
    result: list[int] = json.loads(done.stdout.splitlines()[-1])
    return result


def _title(shape: str, rows: Sequence[dict[str, Any]], dtype: str, device: torch.device) -> str:
    first = rows[0]
    return (
        f"{shape}: {first['parameters'] / 1e6:.4g}M parameters, {first['samples']} samples, {first['tokens']} tokens, "
        f"{dtype} on {device}"
    )


def _possible_shapes() -> list[str]:
    """Shapes whose layers hold the five projections as modules of their own, which all libraries can reach."""
    return [name for name, shape in SHAPES.items() if shape.model_type != "phi3"]


def _check_names(options: argparse.Namespace, shapes: Sequence[str]) -> None:
    for shape in shapes:
        if shape not in _possible_shapes():
            why = "holds its projections joined, which not all libraries reach" if shape in SHAPES else "is unknown"
            raise CulnigError(f"--shape {shape} {why}; choose from {', '.join(_possible_shapes())}")
    unknown = [name for name in options.methods or () if name not in PEERS]
    if unknown:
        raise CulnigError(f"unknown --methods {', '.join(unknown)}; choose from {', '.join(PEERS)}")


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
