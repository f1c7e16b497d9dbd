"""Models by name with random weights, made on the device they run on; `culnig_fast.planning.shapes` configures them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers

from culnig_fast.errors import CulnigError
from culnig_fast.planning.shapes import SHAPES, Shape

__all__ = ["SHAPES", "Shape", "Size", "build", "size_of"]


def build(shape: Shape, device: torch.device, dtype: torch.dtype, layers: int | None = None, seed: int = 0) -> Any:
    """A model with random weights, made where it will run, in evaluation mode.

    Raises:
        CulnigError: it does not fit into the device's memory.
    """
    torch.manual_seed(seed)
    try:
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(shape.config(layers), dtype=dtype)
    except torch.OutOfMemoryError as error:
        raise CulnigError(f"{shape.name} in {dtype} does not fit on {device}; choose a smaller --shape") from error
    return model.to(device=device, dtype=dtype).eval()


@dataclass(frozen=True)
class Size:
    """Weights of a model: all, those that every token passes, those that one position a sample passes."""

    total: int
    layers: int
    head: int

    def flops(self, tokens: int, samples: int) -> float:
        """Floating-point operations of forward and activation-only backward: 4 a weight and token.

        Two a weight forward and two for the gradient of its input. The embedding multiplies nothing; the head
        runs at one position a sample; attention's own products are left out, as is usual.
        """
        return 4.0 * (self.layers * tokens + self.head * samples)


def size_of(model: Any) -> Size:
    """Count a model's weights."""
    head = model.get_output_embeddings().weight
    outside = {id(head), id(model.get_input_embeddings().weight)}
    layers = sum(p.numel() for p in model.parameters() if id(p) not in outside)
    return Size(sum(p.numel() for p in model.parameters()), layers, head.numel())
