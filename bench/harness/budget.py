"""How many tokens a batch of a benchmark holds where nobody says."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from culnig_fast.planning.plan import plan

_ON_A_CPU = 2048
_MOST = 16384
_ROOM = 0.9
"""Share of the memory that weights and what a pass keeps may take; gradients in flight take the rest."""


def default_tokens(shapes: Iterable[str], device: torch.device, dtype: torch.dtype, length: int) -> int:
    """Tokens a batch, padding included.

    On a GPU a power of two of at most 16,384 at which the bare pass fits at every one of the shapes: without it there
    is nothing to compare with. Methods that keep more may then not fit, and say so.
    """
    if device.type == "cpu":
        return _ON_A_CPU
    memory = torch.cuda.get_device_properties(device).total_memory
    return min(_fitting(shape, memory, str(dtype).removeprefix("torch."), length) for shape in shapes)


def _fitting(shape: str, memory: int, dtype: str, length: int) -> int:
    made = plan(shape, dtype=dtype, length=length)
    each = made.activations.taps  # the taps keep what the model's own pass keeps
    if each is None:
        return _MOST
    tokens = _MOST
    while tokens > length and made.weights[dtype] + tokens * each > _ROOM * memory:
        tokens //= 2
    return tokens
