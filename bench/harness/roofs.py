"""What the machine can do at most, measured in the process that quotes it."""

from __future__ import annotations

import torch

from harness.clock import seconds_of

SIZES = {"cpu": 1536, "cuda": 8192}
"""Rows of the product: enough that neither launch nor edges show, few enough to be quick (70 ms on a CPU core)."""

COPIED = {"cpu": 2**27, "cuda": 2**30}
"""Bytes of the copy, beyond any cache."""


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

        def run() -> None:
            torch.mm(self.a, self.b, out=self.out)

        run()
        times = seconds_of(run, self.device, repeats)
        return 2.0 * self.size**3 / min(times)


def copy_rate(device: torch.device, repeats: int = 10) -> float:
    """Best device-to-device copy, bytes read and written a second."""
    count = COPIED[device.type]
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    times = seconds_of(lambda: target.copy_(source), device, repeats)
    return 2.0 * count / min(times)
