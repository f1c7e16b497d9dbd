"""torchrun with several processes against one, a rank killed, and the job started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from culnig_fast.scores import ScoreTable
from harness.faults._scoring import command, distance, quietly, sentence, timed

TITLE = "torchrun with 2 and 3 gloo processes against one, dividing samples or weights; one rank killed, started again"

WAYS = (("samples", 2), ("samples", 3), ("weights", 2))
"""What the processes divide, and how many they are."""

LIMITS = {"samples": 1e-12, "weights": 1e-5}
"""Of the largest total: only the order of float64 sums differs, or of the model's float32 sums."""


def run(folder: Path, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """One process, then each way undisturbed and killed."""
    split, often = "neur", ("--checkpoint-seconds", "0.3")
    one, options = folder / "one.safetensors", (*often, "--batch-tokens", "64")
    seconds = timed(command(one, *options, split=split), OMP_NUM_THREADS="1")  # as torchrun gives its processes
    whole = ScoreTable.load(one)
    rows = []
    for divided, size in WAYS[:1] if quick else WAYS:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
        # Divided weights are exchanged for in every batch: of small ones, that alone would be measured.
        further = (*often, "--batch-tokens", "1024", "--tensor-parallel") if divided == "weights" else options
        out, again = folder / f"{divided}{size}.safetensors", folder / f"{divided}{size}-again.safetensors"
        undisturbed = timed([*launch, *command(out, *further, split=split)])
        table = ScoreTable.load(out)
        kept = f"{again.name}.partial" + (f".rank{size - 1}of{size}" if divided == "samples" else "")
        repeated = [*launch, *command(again, *further, split=split)]
        killed = _kill_one(repeated, folder / kept, size - 1)
        timed(repeated)
        row = {
            "divided": divided,
            "processes": size,
            "seconds": round(undisturbed, 1),
            "difference_from_one_process": distance(table, whole),
            "ids_equal": table.ids == whole.ids,
            **killed,
            "restarted_bytes_equal_undisturbed": again.read_bytes() == out.read_bytes(),
            "files_left_over": sorted(path.name for path in folder.glob("*.partial*")),
        }
        row["passed"] = (
            row["difference_from_one_process"] <= LIMITS[divided]
            and row["ids_equal"]
            and row["restarted_bytes_equal_undisturbed"]
            and f"rank {size - 1} died" in row["sentence"]
            and not row["files_left_over"]
        )
        rows.append(row)
        say(
            f"{size} processes, {divided} divided: {row['difference_from_one_process']:.1e} from one; rank {size - 1} "
            f"killed: {row['seconds_to_end']} s later '{row['sentence']}'; restarted, bytes equal: "
            f"{row['restarted_bytes_equal_undisturbed']}"
        )
    return {"seconds_one_process": round(seconds, 1), "rows": rows, "passed": all(row["passed"] for row in rows)}


def _kill_one(arguments: list[str], progress: Path, victim: int) -> dict[str, Any]:
    """Start a job and kill a rank once it has kept progress; how the job ends."""
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not progress.exists():
        if process.poll() is not None:
            raise RuntimeError(f"the job ended before it could be killed: {process.communicate()[1][-500:]}")
        time.sleep(0.02)
    os.kill(_child_of(process.pid, victim), signal.SIGKILL)
    start = time.perf_counter()
    status, errors = quietly(process)
    return {
        "exit_status": status,
        "seconds_to_end": round(time.perf_counter() - start, 1),
        "sentence": sentence(errors).replace(f"{progress.parent}/", ""),
    }


def _child_of(parent: int, rank: int) -> int:
    """The process of a rank, by the variable that torchrun gave it (Linux)."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables:
            return int(child)
    raise RuntimeError(f"torchrun has no child of rank {rank}")
