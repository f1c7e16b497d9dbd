"""Peak memory of one step above what was there before it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
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
