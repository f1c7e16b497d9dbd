"""Per-layer recomputation: a layer keeps its input alone, and runs again when its gradient arrives.

One layer's activations exist at a time, for one more forward pass of all layers but the last, which runs backward
right after it ran forward. The first run records no graph, so no neuron can be scored in it; the second is the only one
with a backward, so each neuron is scored exactly once, on taps and in fused layers alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from culnig_fast.probing.layer import hidden_state

Run = Callable[[torch.Tensor], torch.Tensor]
"""A layer with all arguments but its hidden state [S, T, H]; returns the next one."""


class _Recomputed(torch.autograd.Function):
    """run(hidden), of which only `hidden` is kept."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, run: Run) -> torch.Tensor:
        ctx.save_for_backward(hidden)
        ctx.run = run
        return run(hidden)  # a function's forward records no graph

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        (hidden,) = ctx.saved_tensors
        leaf = hidden.detach().requires_grad_(True)
        with torch.enable_grad():
            out = ctx.run(leaf)
        # Not autograd.grad: the taps inside must see every gradient, also where none reaches the leaf.
        torch.autograd.backward(out, grad)
        return leaf.grad, None


@contextlib.contextmanager
def recomputed_layers(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the block every layer but the last keeps its input alone; what each layer's forward was stays as it is."""
    with contextlib.ExitStack() as stack:
        for layer in layers[:-1]:
            stack.enter_context(_wrapped(layer))
        yield


@contextlib.contextmanager
def _wrapped(layer: nn.Module) -> Iterator[None]:
    own, earlier = layer.forward, vars(layer).get("forward")

    def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or not hidden.requires_grad:
            return own(hidden, *args, **kwargs)
        returned: list[type] = []

        def run(hidden: torch.Tensor) -> torch.Tensor:
            out = own(hidden, *args, **kwargs)
            returned.append(type(out))
            return hidden_state(out)

        out = _Recomputed.apply(hidden, run)
        return [out] if issubclass(returned[0], list) else (out,) if issubclass(returned[0], tuple) else out

    layer.forward = forward
    try:
        yield
    finally:
        if earlier is None:
            del layer.forward
        else:
            layer.forward = earlier
