"""SIGKILL at random moments of a run, each followed by a start of the same command."""

from __future__ import annotations

import multiprocessing
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from culnig_fast.scores import ScoreTable
from culnig_fast.tensors import map_tensor
from harness.faults._scoring import command

TITLE = "50 SIGKILLs at random moments of a run, each followed by a restart: the same bytes in the end"

_IMPORTED = ("culnig_fast.cli", "culnig_fast.attribution", "culnig_fast.models", "culnig_fast.tasks.base")


def score(arguments: list[str]) -> None:
    """The command, in a process of its own that has its imports already."""
    import os

    from culnig_fast.cli import main

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.argv = ["culnig-fast", *arguments]
    main()


def run(folder: Path, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Kill until there were enough kills; a run that ends before is compared and begun anew."""
    kills_wanted, random_, split = (3 if quick else 50), random.Random(0), "neur" if quick else "all"
    # Each process is forked from one that has imported everything: imports would be most of fifty runs.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    whole, out = folder / "whole.safetensors", folder / "again.safetensors"
    partial = out.with_name(f"{out.name}.partial")

    def start(path: Path) -> Any:
        options = ("--checkpoint-seconds", "0.5", "--batch-tokens", "64")
        process = context.Process(target=score, args=(command(path, *options, split=split)[2:],))
        process.start()
        return process

    began = time.perf_counter()
    undisturbed = start(whole)
    undisturbed.join()
    seconds, expected = time.perf_counter() - began, whole.read_bytes()
    kills, before_any, kept, finished = 0, 0, 0, []
    while True:
        process = start(out)
        if kills < kills_wanted:
            _random_moment(process, partial, random_, seconds / kills_wanted)
            process.kill()
        process.join()
        if out.exists():
            finished.append(out.read_bytes() == expected)
            say(f"a run ended after {kills} kills; the same bytes: {finished[-1]}")
            if kills >= kills_wanted:
                break
            out.unlink()
            partial.unlink(missing_ok=True)
            kept = 0
            continue
        if kills >= kills_wanted:
            raise RuntimeError(f"the command ended with {process.exitcode} and no output")
        kills += 1
        done = len(map_tensor(partial, "probability")) if partial.exists() else 0
        before_any += not done
        if done < kept:
            raise RuntimeError(f"progress went back from {kept} to {done} samples")
        kept = done
        say(f"kill {kills} of {kills_wanted}: {done} samples kept")
    table, ids = ScoreTable.load(whole), ScoreTable.load(out).ids
    left = sorted(path.name for path in folder.iterdir() if path not in (whole, out))
    complete = ids == table.ids and len(set(ids)) == len(ids) == table.n_samples
    say(f"{kills} kills, {len(ids)} samples, byte-identical: {all(finished)}, ids complete: {complete}, left: {left}")
    return {
        "samples": len(ids),
        "kills": kills,
        "kills_before_any_progress": before_any,
        "runs_compared": len(finished),
        "byte_identical": all(finished),
        "ids_complete": complete,
        "files_left_over": left,
        "seconds_undisturbed": round(seconds, 1),
        "passed": all(finished) and complete and not left,
    }


def _random_moment(process: Any, partial: Path, random_: random.Random, share: float) -> None:
    """Wait for a random moment: one time in five while the process starts, else after it has kept progress."""
    if random_.random() < 0.2:
        time.sleep(random_.uniform(0.0, share))
        return
    before = partial.stat().st_mtime_ns if partial.exists() else 0
    while process.is_alive() and not (partial.exists() and partial.stat().st_mtime_ns > before):
        time.sleep(0.01)
    time.sleep(random_.uniform(0.0, share))
