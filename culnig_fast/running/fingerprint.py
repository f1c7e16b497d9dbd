"""What tells one model from another: every bit of its weights, without copying them anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from culnig_fast.divided import is_divided, own_part

_PIECE = 2**18
"""Words of 8 bytes that are mixed at once: 2 MiB stay in a core's cache, and a GPU is busy with them."""


def fingerprint(model: Any) -> Mapping[str, Any]:
    """JSON-ready facts: class, configuration, dtype, attention, and a number of every weight and buffer.

    The number depends on every element and on its place: exchanged rows or columns are another model. It is made of
    integers, so it is the same on every device; a weight of which nothing is in memory (`meta`) gives its shape alone.
    """
    # Quantised layers may keep their weights in buffers.
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    factors: dict[torch.device, torch.Tensor] = {}
    weights = {name: _number(tensor.detach(), factors) for name, tensor in tensors}
    return {
        "class": type(model).__name__,
        "config": model.config.to_json_string(),
        "dtype": str(model.dtype),
        **implementations(model),
        "weights": weights,
    }


def implementations(model: Any) -> dict[str, str]:
    """Which of transformers' implementations compute attention and experts, of which the configuration says nothing."""
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    return {
        name: ", ".join(sorted({str(getattr(config, f"_{kind}_implementation", None)) for config in configs}))
        for name, kind in (("attention", "attn"), ("experts", "experts"))
    }


@torch.no_grad()
def _number(weight: torch.Tensor, factors: dict[torch.device, torch.Tensor]) -> list[int]:
    shape = list(weight.shape)
    if is_divided(weight):
        return [*shape, *_number(own_part(weight), factors)]
    if weight.device.type == "meta" or weight.numel() == 0:
        return shape
    if type(weight) is not torch.Tensor and type(weight) is not torch.nn.Parameter:
        weight = weight.to(torch.float32)  # a quantised weight: what it stands for
    if weight.device not in factors:
        factors[weight.device] = _factors().to(weight.device)
    own = factors[weight.device]
    pieces = weight.contiguous().reshape(-1).split(_PIECE * 8 // weight.element_size())
    sums = torch.stack([_mixed(_words(piece), own) for piece in pieces])
    return [*shape, int(torch.stack([_mixed(part, own) for part in sums.split(_PIECE)]).sum())]


def _words(piece: torch.Tensor) -> torch.Tensor:
    """int64, the memory of some elements that lie side by side; a copy, with zeros behind, where words do not fit."""
    size = piece.element_size()
    if not any(number % 8 for number in (piece.numel() * size, piece.storage_offset() * size, piece.data_ptr())):
        return piece.view(torch.int64)
    padded = torch.zeros(-(-piece.numel() * size // 8) * 8, dtype=torch.uint8, device=piece.device)
    # A copy with a stride of 1: that of a single element can be anything.
    padded[: piece.numel() * size] = piece.new_empty(piece.numel()).copy_(piece).view(torch.uint8)
    return padded.view(torch.int64)


def _mixed(words: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Σ f(factor · word) mod 2⁶⁴, a scalar; both factor and f, which brings high bits down, can be undone, so that a
    single changed word always shows.
    """
    product = words * factors[: len(words)]
    return product.bitwise_xor_(product >> 32).sum()


def _factors() -> torch.Tensor:
    """Odd numbers, int64 [_PIECE], as unlike as random ones: splitmix64 (Steele, Lea and Flood, 2014) of each place."""
    x = np.arange(1, _PIECE + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return torch.from_numpy(((x ^ (x >> np.uint64(31))) | np.uint64(1)).view(np.int64))
