"""What autograd keeps between forward and backward, measured on a model that exists."""

from __future__ import annotations

from typing import Any

import torch

from culnig_fast.attributor import Attributor


def kept_per_token(model: Any, path: str, sites: Any = None, lengths: tuple[int, int] = (32, 64)) -> tuple[float, int]:
    """Bytes a token that autograd keeps in an attributor's forward, by the difference of two lengths; fused layers.

    From a length of 0 on it is the mean over a sample's tokens.
    """
    sizes = []
    with Attributor(model, path=path, sites=sites) as attributor:
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        for length in lengths:
            if not length:
                sizes.append(0)
                continue
            kept: dict[int, torch.Tensor] = {}

            def pack(tensor: torch.Tensor, kept: dict[int, torch.Tensor] = kept) -> torch.Tensor:
                if tensor.untyped_storage().data_ptr() not in own:
                    kept[tensor.untyped_storage().data_ptr()] = tensor
                return tensor

            input_ids = torch.arange(length)[None] % 60 + 3
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                attributor.forward(input_ids, torch.tensor([length]))
            sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
    return (sizes[1] - sizes[0]) / (lengths[1] - lengths[0]), len(attributor.fusion.layers)
