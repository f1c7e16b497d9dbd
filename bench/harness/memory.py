"""Peak memory of one step above what was there before it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

METHOD = {
    "cuda": "torch.cuda.max_memory_allocated above the weights and the batch",
    "cpu": "highest running sum of the tensor allocations and frees that torch.profiler records in one step "
    "(Python's own lists and dictionaries are not in it)",
}


def peak_above(step: Callable[[], None], device: torch.device, base: int = 0) -> int:
    """Bytes that one step holds at its highest point.

    Args:
        step: what to run.
        device: where.
        base: on CUDA, bytes allocated before the method was made ready (weights and batch).
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - base
    recorded = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
    with _quiet():
        recorded.start()
    try:
        step()
    finally:
        with _quiet():
            recorded.stop()
    kineto = recorded.profiler.kineto_results if recorded.profiler is not None else None
    events: list[Any] = [event for event in (kineto.events() if kineto else []) if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def resident(name: str) -> int:
    """Bytes of this process as the kernel counts them: VmRSS is what is resident, VmHWM the most that ever was.

    Raises:
        OSError: the system has no such count.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def resident_peak_above(step: Callable[[], None]) -> int:
    """Bytes by which the resident memory of this process rises above what it is now; whatever it peaked at before.

    Raises:
        OSError: the system does not count, or does not let a process start its count anew.
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM becomes VmRSS
    before = resident("VmRSS")
    step()
    return max(0, resident("VmHWM") - before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The profiler's library announces itself on the standard error, below Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
