"""The hidden states of a block of batches, in host memory, layer by layer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from culnig_fast.batching import Batch
from culnig_fast.errors import CulnigError
from culnig_fast.streaming.calls import Call

MOST_TOKENS_CPU = 32_768
"""On a CPU a larger block only costs memory: reading the weights is about 1 % of the time by then."""
MEMORY_SHARE = 0.5
"""Of the memory that is free, what a block's hidden states may take."""


@dataclass
class BlockBatch:
    """One batch of a block.

    Attributes:
        batch: its samples, on the compute device.
        calls: what each layer is called with beside the hidden state.
        end: what the last layer put out, [S, T, H] or [S, 1, H] of the last positions; then the gradient of it.
        weight, group: of each sample, once the objective is known.
        keep: bool [S, T], the positions that count; None for all real ones.
    """

    batch: Batch
    calls: list[Call] = field(default_factory=list)
    end: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    group: torch.Tensor | None = None
    keep: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(samples, positions)."""
        return self.batch.input_ids.shape[0], self.batch.input_ids.shape[1]


class States:
    """Hidden states [S, T, H] of every batch of a block at a layer's input, one tensor a layer.

    In backward a layer's place is given to the gradient of its input. For a GPU the memory is pinned.
    """

    def __init__(self, batches: Sequence[BlockBatch], device: torch.device) -> None:
        self._device = device
        self._shapes = [batch.shape for batch in batches]
        self._starts = np.concatenate([[0], np.cumsum([samples * length for samples, length in self._shapes])])
        self._layers: dict[int, torch.Tensor] = {}

    def put(self, layer: int, batch: int, state: torch.Tensor) -> None:
        """Keep what layer `layer` reads of a batch, or that input's gradient."""
        if layer not in self._layers:
            shape = (int(self._starts[-1]), state.shape[-1])
            self._layers[layer] = torch.empty(shape, dtype=state.dtype, pin_memory=self._device.type == "cuda")
        self._rows(layer, batch).copy_(state.detach().flatten(0, 1), non_blocking=True)

    def get(self, layer: int, batch: int) -> torch.Tensor:
        """What was put there, on the compute device."""
        rows = self._rows(layer, batch).view(*self._shapes[batch], -1)
        return rows.to(self._device, non_blocking=True)

    def drop(self, layer: int) -> None:
        """Give a layer's memory back."""
        self._layers.pop(layer, None)

    def _rows(self, layer: int, batch: int) -> torch.Tensor:
        return self._layers[layer][int(self._starts[batch]) : int(self._starts[batch + 1])]


def plan_blocks(batches: Sequence[np.ndarray], lengths: Sequence[int], tokens: int) -> list[list[np.ndarray]]:
    """Consecutive batches that together hold at most `tokens` padded tokens, at least one a block.

    Raises:
        CulnigError: fewer than one token.
    """
    if tokens < 1:
        raise CulnigError("a block needs room for at least one token; raise stream_tokens")
    blocks: list[list[np.ndarray]] = []
    room = 0
    for batch in batches:
        size = len(batch) * max(lengths[i] for i in batch)
        if not blocks or size > room:
            blocks.append([])
            room = tokens
        blocks[-1].append(batch)
        room -= size
    return blocks


def default_stream_tokens(layers: int, width: int, itemsize: int, device: torch.device) -> int:
    """Tokens whose hidden states fit into a share of the host's free memory."""
    each = int(MEMORY_SHARE * _free_memory() / layers)
    if device.type == "cpu":
        return max(1, min(each // (width * itemsize), MOST_TOKENS_CPU))
    # torch takes pinned memory in powers of two, and would go beyond the share by up to as much again.
    return max(1, (1 << each.bit_length() - 1) // (width * itemsize))


def _free_memory() -> int:
    """Bytes that can be had without swapping: what Linux says, elsewhere a quarter of all memory."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
