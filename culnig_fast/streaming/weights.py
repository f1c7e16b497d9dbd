"""Brings parts of a model into memory and out again, the next one while the current one computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from culnig_fast.streaming.pieces import Stored, read_stored, tensor_names
from culnig_fast.streaming.shards import Shards


@dataclass(frozen=True)
class Slot:
    """One parameter: the module that owns it, its name there, and the checkpoint's tensors that it is made of."""

    module: nn.Module
    name: str
    stored: Stored


_ALIGNMENT = 64
"""Bytes; of each tensor's place in its part's memory."""

Part = tuple[Slot, ...]
"""Parameters that come and go together."""


def part_of(modules: Sequence[nn.Module], tensors: Mapping[int, Stored]) -> Part:
    """All parameters below the modules; `tensors` names the checkpoint's tensors of each by the parameter's id."""
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
        empty: list[tuple[Slot, nn.Parameter]] = []
        values: dict[Stored, torch.Tensor] = {}
        try:
            for part in parts:
                # A tensor that two parts share (a tied embedding) is read once.
                if any(slot.stored not in values for slot in part):
                    values |= self._arrived(part)
                for slot in part:
                    empty.append((slot, _parameter(slot)))
                    slot.module._parameters[slot.name] = nn.Parameter(values[slot.stored], requires_grad=False)
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

    def _warmed(self, part: Part) -> None:
        # What cannot be read is said by the read that follows.
        with contextlib.suppress(OSError):
            self.shards.warm(tensor_names([slot.stored for slot in part]))

    def _staged(self, part: Part) -> tuple[dict[Stored, torch.Tensor], torch.cuda.Event]:
        with torch.cuda.stream(self._stream):
            values = self._read(part)
            done = torch.cuda.Event()
            done.record(self._stream)
        return values, done

    def _arrived(self, part: Part) -> dict[Stored, torch.Tensor]:
        """A part's values, from what was read ahead if that is it."""
        ahead = None
        if self._ahead is not None and self._ahead[0] is part:
            ahead, self._ahead = self._ahead[1].result(), None
        if ahead is None:
            return self._read(part)
        values, done = ahead
        current = torch.cuda.current_stream(self.device)
        current.wait_event(done)
        for value in values.values():
            value.record_stream(current)
        return dict(values)

    def _read(self, part: Part) -> dict[Stored, torch.Tensor]:
        """What each parameter is made of → its value.

        Matrices lie one behind the other in one piece of memory, in the order of the slots. So projections that read
        one tensor can be joined without a copy, a GPU gets the part in one transfer, and the allocator is given large
        pieces alone, which it returns to the system.
        """
        values: dict[Stored, torch.Tensor] = {}
        ordered = sorted(part, key=lambda slot: _parameter(slot).dim() < 2)
        for dtype in dict.fromkeys(_parameter(slot).dtype for slot in ordered):
            step = _ALIGNMENT // dtype.itemsize
            places: dict[Stored, tuple[int, torch.Size]] = {}
            end = 0
            for slot in ordered:
                meta = _parameter(slot)
                if meta.dtype == dtype and slot.stored not in places:
                    places[slot.stored] = end, meta.shape
                    end += -(-meta.numel() // step) * step
            host = torch.empty(end, dtype=dtype, pin_memory=self.device.type == "cuda")
            for stored, (start, shape) in places.items():
                read_stored(self.shards, stored, host[start : start + shape.numel()].view(shape))
            there = host.to(self.device, non_blocking=True)
            values |= {key: there[at : at + shape.numel()].view(shape) for key, (at, shape) in places.items()}
        return values


def _parameter(slot: Slot) -> nn.Parameter:
    parameter = slot.module._parameters[slot.name]
    assert parameter is not None
    return parameter
