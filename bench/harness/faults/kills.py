"""SIGKILL at random moments of a run, each followed by a start of the same command."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from culnig_fast.scores import ScoreTable
from culnig_fast.tensors import map_tensor
from harness.faults._scoring import command, timed

TITLE = "50 SIGKILLs at random moments of a run, each followed by a restart: the same bytes in the end"


def run(folder: Path, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Kill until there were enough kills; a run that ends before is compared and begun anew."""
    kills_wanted, random_ = (3 if quick else 50), random.Random(0)
    options = ("--checkpoint-seconds", "0.5", "--batch-tokens", "64")
    split = "neur" if quick else "all"
    whole, out = folder / "whole.safetensors", folder / "again.safetensors"
    seconds = timed(command(whole, *options, split=split))
    expected = whole.read_bytes()
    partial = out.with_name(f"{out.name}.partial")
    kills, before_any, kept, finished = 0, 0, [0], []
    while True:
        process = subprocess.Popen(
            [sys.executable, *command(out, *options, split=split)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if kills < kills_wanted:
            # From the first moment to somewhat after the start-up: a killed run gets on by a second or two.
            wait = random_.uniform(0.0, 1.0) * (seconds if quick else min(seconds, 12.0))
            time.sleep(wait)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
        status = process.wait()
        if status == 0:
            finished.append(out.read_bytes() == expected)
            ids = ScoreTable.load(out).ids
            if kills >= kills_wanted:
                break
            out.unlink()
            kept.append(0)
            continue
        if status != -signal.SIGKILL:
            raise RuntimeError(f"the command ended with {status}")
        done = len(map_tensor(partial, "probability")) if partial.exists() else 0
        before_any += not done
        if done < kept[-1]:
            raise RuntimeError(f"progress went back from {kept[-1]} to {done} samples")
        kept.append(done)
        say(f"kill {kills} of {kills_wanted}: {done} samples kept")
    table = ScoreTable.load(whole)
    left = sorted(path.name for path in folder.iterdir() if path.name not in (whole.name, out.name))
    complete = ids == table.ids and len(set(ids)) == len(ids)
    figures = {
        "samples": len(ids),
        "kills": kills,
        "kills_before_any_progress": before_any,
        "runs_finished": len(finished),
        "byte_identical": all(finished),
        "ids_complete": complete,
        "files_left_over": left,
        "seconds_undisturbed": round(seconds, 1),
        "passed": all(finished) and complete and not left and kills == kills_wanted,
    }
    say(f"{kills} kills, {len(ids)} samples, byte-identical: {all(finished)}, ids complete: {complete}, left: {left}")
    return figures
