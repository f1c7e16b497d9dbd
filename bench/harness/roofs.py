"""What the machine can do at most, measured in the process that quotes it."""

from __future__ import annotations

import time

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


SIZES = {"cpu": 1536, "cuda": 8192}
"""Rows of the product: enough that neither launch nor edges show, few enough to be quick (70 ms on a CPU core)."""


class ProductRoof:
    """Square matrix product of random data in the models' dtype."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.size = SIZES[device.type]
        self.device = device
        self.a = torch.randn(self.size, self.size, device=device).to(dtype)
        self.b = torch.randn(self.size, self.size, device=device).to(dtype)
        self.out = torch.empty_like(self.a)

    def measure(self, repeats: int = 5) -> float:
        """The best rate of a few, FLOP/s."""
        times = []
        torch.mm(self.a, self.b, out=self.out)
        for _ in range(repeats):
            synchronize(self.device)
            start = time.perf_counter()
            torch.mm(self.a, self.b, out=self.out)
            synchronize(self.device)
            times.append(time.perf_counter() - start)
        return 2.0 * self.size**3 / min(times)


def copy_rate(device: torch.device, repeats: int = 10) -> float:
    """Best device-to-device copy, bytes read and written a second."""
    count = 2**30 if device.type == "cuda" else 2**27
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2.0 * count / min(times)
