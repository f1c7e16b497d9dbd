"""How many tokens a batch may hold: measured where memory is the limit, halved when it runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch

FIRST_TOKENS = 2048
"""Tokens of the first batch that is measured; the second one has at most four times as many."""

MOST_TOKENS = 32768
"""More rows a product make no card busier, and a batch's scores are lost when it fails."""


@dataclass
class Budget:
    """Padded tokens a batch.

    Attributes:
        tokens: what batches are planned with; None for batches of a fixed number of samples.
        limit: what is run at once; below `tokens` after memory ran out. None is no limit.
        halvings: how often memory ran out.
    """

    tokens: int | None
    limit: int | None = None
    halvings: int = 0

    def halve(self, failed: int) -> None:
        """A batch of `failed` padded tokens did not fit."""
        self.limit = max(1, (failed if self.limit is None else min(failed, self.limit)) // 2)
        self.halvings += 1

    def rows(self, count: int, width: int) -> int:
        """How many of `count` samples padded to `width` may run at once; at least one."""
        return count if self.limit is None else max(1, min(count, self.limit // width))


class Meter(Protocol):
    """Reads a device's memory, in bytes."""

    def start(self) -> None:
        """Forget earlier peaks."""

    def needed(self) -> int:
        """Peak since `start`, above what was in use then."""

    def available(self) -> int:
        """What could still be allocated."""


class CudaMeter:
    """The allocator's counters; reading them does not wait for the device, asking the driver what is free does."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._base = 0

    def start(self) -> None:
        """Forget earlier peaks."""
        torch.cuda.reset_peak_memory_stats(self.device)
        self._base = torch.cuda.memory_allocated(self.device)

    def needed(self) -> int:
        """Peak since `start`, above what was in use then."""
        return torch.cuda.max_memory_allocated(self.device) - self._base

    def available(self) -> int:
        """Free on the card, and free in what the allocator holds."""
        free, _ = torch.cuda.mem_get_info(self.device)
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return free + held


def measured_tokens(run: Callable[[int], int], meters: Iterable[Meter], share: float) -> int:
    """The largest budget that keeps to a share of what is free, from two measured batches of the longest samples.

    Args:
        run: runs a batch of at most so many padded tokens, scores nothing, returns how many they were. When memory
            runs out it raises, and half as many are tried.
        meters: one for each device that the model is on.
        share: of the free memory, between 0 and 1.

    Returns:
        a power of two, or one and a half of one: the same on every run although free memory differs by a little.
    """
    meters, asked = list(meters), FIRST_TOKENS
    fitting = 0
    for step in range(2):
        while True:
            for meter in meters:
                meter.start()
            try:
                tokens = run(asked)
                break
            except Exception as error:
                if not is_out_of_memory(error) or asked == 1:
                    raise
            asked //= 2
        # What does not grow with the tokens is charged to them too, which errs on the safe side.
        fits = [int(share * meter.available() / (meter.needed() / tokens)) for meter in meters if meter.needed() > 0]
        fitting = min([*fits, MOST_TOKENS])
        if step == 0 and fitting <= asked:
            break
        asked = min(4 * asked, fitting)
    return round_budget(fitting)


def round_budget(tokens: int) -> int:
    """The largest 2^k or 3·2^k that is not above `tokens`; 1 below that."""
    if tokens < 2:
        return 1
    power = 1 << (tokens.bit_length() - 1)
    return power + power // 2 if power + power // 2 <= tokens else power


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a CPU or a GPU, in torch, cuBLAS, Triton or Python."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    return any(
        phrase in text
        for phrase in ("out of memory", "not enough memory", "can't allocate memory", "cublas_status_alloc_failed")
    )
