"""What tells one model from another: every bit of its weights, without copying them anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch

from culnig_fast.divided import is_divided, own_part

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(model: Any) -> Mapping[str, Any]:
    """JSON-ready facts: class, configuration, dtype, and exact sums over every weight and buffer.

    The sums are of integers, so they are the same on every device and in any order, and a single zeroed row changes
    them; a weight of which nothing is in memory (`meta`) gives its shape alone.
    """
    # Quantised layers may keep their weights in buffers.
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    weights = {name: _sums(tensor.detach()) for name, tensor in tensors}
    return {
        "class": type(model).__name__,
        "config": model.config.to_json_string(),
        "dtype": str(model.dtype),
        "weights": weights,
    }


@torch.no_grad()
def _sums(weight: torch.Tensor) -> list[Any]:
    shape = list(weight.shape)
    if is_divided(weight):
        return [*shape, *_sums(own_part(weight))]
    if weight.device.type == "meta" or weight.numel() == 0:
        return shape
    if type(weight) is not torch.Tensor and type(weight) is not torch.nn.Parameter:
        weight = weight.to(torch.float32)  # a quantised weight: what it stands for
    bits = weight.contiguous().reshape(shape[0] if shape else 1, -1).view(_INTEGERS[weight.element_size()])
    rows = bits.sum(1, dtype=torch.int64)
    # Weighted by its place too: exchanged rows are another model.
    places = torch.arange(1, len(rows) + 1, device=rows.device)
    return [*shape, int(rows.sum()), int((rows * places).sum())]
