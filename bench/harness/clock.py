"""How long something takes on a device, launching it left out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

_LAUNCHES = 10
"""Runs in one timing on a GPU: gaps between timings then do not show."""
_BUSY_BYTES = 2**30
_BUSY_COPIES = 8
"""Milliseconds of copying, in which the host queues all runs: a launch from Python takes as long as a small kernel."""


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    """Seconds of one run, `repeats` times.

    On a GPU between two events of its own stream, with the runs queued behind other work: what the device takes, not
    what the host takes to ask for it.
    """
    if device.type != "cuda":
        return [_by_the_host(run) for _ in range(repeats)]
    source = torch.empty(_BUSY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = []
    with torch.cuda.device(device):  # events are of the current device
        for _ in range(repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            for _ in range(_BUSY_COPIES):
                target.copy_(source)
            begin.record()
            for _ in range(_LAUNCHES):
                run()
            end.record()
            synchronize(device)
            found.append(begin.elapsed_time(end) / 1e3 / _LAUNCHES)
    return found


def _by_the_host(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
