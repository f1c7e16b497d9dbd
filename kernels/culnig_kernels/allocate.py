"""Where every launcher gets its output from, so that a test can poison what a kernel forgets to write.

On a CPU the allocator gives large blocks back to the system, and each new one costs a page fault every 4 KiB, which in
a pass over a model adds up to a sixth of its time. A `Pool` keeps the blocks that somebody says they are done with.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Sequence

import torch

_current = threading.local()


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised contiguous tensor; on a CPU out of the pool of the surrounding `using`, where there is one."""
    pool: Pool | None = getattr(_current, "pool", None)
    if pool is None or device.type != "cpu":
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    return pool.take(shape, dtype)


@contextlib.contextmanager
def using(pool: Pool) -> Iterator[None]:
    """Inside the block this thread's `empty` takes from the pool."""
    before = getattr(_current, "pool", None)
    _current.pool = pool
    try:
        yield
    finally:
        _current.pool = before


class Pool:
    """CPU memory that is used again instead of being freed.

    It holds what was given back only: a tensor that was taken and never given is freed as any other. What is held
    never grows beyond what was in use at once, since new memory is made only after as much of the held was let go.
    """

    smallest = 2**20
    """Bytes from which a block is worth keeping; smaller ones the allocator keeps itself."""

    def __init__(self) -> None:
        self._free: list[torch.UntypedStorage] = []

    @property
    def held(self) -> int:
        """Bytes that wait to be used again."""
        return sum(block.nbytes() for block in self._free)

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised contiguous CPU tensor, in memory that nothing else uses."""
        needed = math.prod(shape) * dtype.itemsize
        if needed < self.smallest:
            return torch.empty(tuple(shape), dtype=dtype)
        fitting = [block for block in self._free if needed <= block.nbytes() <= 2 * needed]
        if not fitting:
            while self._free and needed > 0:
                needed -= self._free.pop(0).nbytes()
            return torch.empty(tuple(shape), dtype=dtype)
        best = min(fitting, key=lambda block: block.nbytes())
        # By identity: storages compare by their bytes.
        self._free = [block for block in self._free if block is not best]
        return torch.empty(0, dtype=dtype).set_(best, 0, tuple(shape))  # type: ignore[call-overload]

    def give(self, *tensors: torch.Tensor | None) -> None:
        """Take the tensors' memory back; the caller is the last who uses them or any view of them. None is skipped."""
        for tensor in tensors:
            if tensor is None or tensor.device.type != "cpu":
                continue
            block = tensor.untyped_storage()
            if block.nbytes() >= self.smallest and all(block.data_ptr() != b.data_ptr() for b in self._free):
                self._free.append(block)
