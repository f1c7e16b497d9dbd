"""Brings parts of a model into memory and out again, the next one while the current one computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from culnig_fast.streaming.shards import Shards


@dataclass(frozen=True)
class Slot:
    """One parameter: the module that owns it, its name there, and the checkpoint's tensor."""

    module: nn.Module
    name: str
    tensor: str


Part = tuple[Slot, ...]
"""Parameters that come and go together."""


def part_of(modules: Sequence[nn.Module], tensors: Mapping[int, str]) -> Part:
    """All parameters below the modules; `tensors` names the checkpoint's tensor of each by the parameter's id."""
    return tuple(
        Slot(module, name, tensors[id(parameter)])
        for root in modules
        for module in root.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    )


class Weights:
    """The parts' weights, on `device` while they are loaded.

    Reading ahead: for a CPU, a thread brings the next part's bytes from disk into the page cache, which holds no memory
    that is not given up when it is short; what is left to loading is a copy. For a GPU, the thread reads into pinned
    memory and copies on a stream of its own, so that two parts are on the device for a while.

    Args:
        shards: the checkpoint.
        device: where weights go.
    """

    def __init__(self, shards: Shards, device: torch.device) -> None:
        self.shards, self.device = shards, device
        self._staying = contextlib.ExitStack()
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: tuple[Part, Future[Any]] | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def ahead(self, part: Part) -> None:
        """Start to bring a part nearer; `loaded` waits for it."""
        if self._ahead is not None and self._ahead[0] is part:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="weights")
        work = self._staged if self.device.type == "cuda" else self._warmed
        self._ahead = (part, self._pool.submit(work, part))

    @contextlib.contextmanager
    def loaded(self, *parts: Part) -> Iterator[None]:
        """Inside the block the parts' parameters hold the checkpoint's values, in the skeleton's dtype; then none.

        Raises:
            CulnigError: a tensor cannot be read.
        """
        values: dict[str, torch.Tensor] = {}
        for part in parts:
            if self._ahead is not None and self._ahead[0] is part:
                values |= self._arrived(self._ahead[1])
                self._ahead = None
        empty: list[tuple[Slot, nn.Parameter]] = []
        try:
            for part in parts:
                for slot in part:
                    meta = slot.module._parameters[slot.name]
                    assert meta is not None
                    if slot.tensor not in values:
                        values[slot.tensor] = self._value(slot, meta.dtype).to(self.device)
                    empty.append((slot, meta))
                    slot.module._parameters[slot.name] = nn.Parameter(values[slot.tensor], requires_grad=False)
            values.clear()
            yield
        finally:
            for slot, meta in empty:
                slot.module._parameters[slot.name] = meta

    def keep(self, part: Part) -> None:
        """Load a part for as long as this object lives."""
        self._staying.enter_context(self.loaded(part))

    def close(self) -> None:
        """Stop reading ahead."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._ahead = None

    def _value(self, slot: Slot, dtype: torch.dtype) -> torch.Tensor:
        return self.shards.read(slot.tensor).to(dtype)

    def _warmed(self, part: Part) -> dict[str, torch.Tensor]:
        # What cannot be read is said by the read that follows.
        with contextlib.suppress(OSError):
            self.shards.warm([slot.tensor for slot in part])
        return {}

    def _staged(self, part: Part) -> tuple[dict[str, torch.Tensor], torch.cuda.Event]:
        values = {}
        with torch.cuda.stream(self._stream):
            for slot in part:
                meta = slot.module._parameters[slot.name]
                assert meta is not None
                pinned = self._value(slot, meta.dtype).pin_memory()
                values[slot.tensor] = pinned.to(self.device, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self._stream)
        return values, done

    def _arrived(self, future: Future[Any]) -> dict[str, torch.Tensor]:
        if self._stream is None:
            future.result()
            return {}
        values, done = future.result()
        current = torch.cuda.current_stream(self.device)
        current.wait_event(done)
        for value in values.values():
            value.record_stream(current)
        return dict(values)
