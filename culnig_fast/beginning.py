"""Where gradients begin: behind the embedding, below which nothing is scored."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class _Beginning(torch.autograd.Function):
    """Hands its input on, as something that requires a gradient and lets none pass.

    Not a leaf, which a model may not scale in place (CTRL does), nor a copy.
    """

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, None]:
        return None, None


def begin_gradients(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    """A forward hook of the embedding: what it puts out requires a gradient, and hands none on."""
    anchor = output.new_empty(0, requires_grad=True)
    begun: torch.Tensor = _Beginning.apply(output.detach(), anchor)  # type: ignore[no-untyped-call]
    return begun
