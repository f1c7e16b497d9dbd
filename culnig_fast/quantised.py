"""Projections whose weights are not plain parameters: told apart, and proved to pass a gradient back.

Weight-only quantisation (torchao, bitsandbytes) multiplies by weights that it widens on the way, and hands activation
gradients back: such layers run on taps. Kernels that also quantise the activations have no backward; autograd then ends
there without a word, and every neuron below would be scored 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from culnig_fast.divided import is_divided
from culnig_fast.errors import CulnigError
from culnig_fast.probing.layer import linear_shape

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def why_not_plain(module: nn.Module) -> str | None:
    """None for a projection with an ordinary floating-point weight, else what it has instead, as a phrase."""
    weight: Any = getattr(module, "weight", None)
    if is_divided(weight) and weight.dtype in _FLOATS:
        return None
    if type(module) not in (nn.Linear, Conv1D):
        if isinstance(module, nn.Linear) and type(weight) is nn.Parameter and weight.dtype in _FLOATS:
            return None
        held = f" with {weight.dtype} weights" if isinstance(weight, torch.Tensor) else ""
        return f"{type(module).__name__}{held}"
    if isinstance(weight, torch.Tensor) and (type(weight) is not nn.Parameter or weight.dtype not in _FLOATS):
        return f"{type(weight).__name__} weights" if type(weight) is not nn.Parameter else f"{weight.dtype} weights"
    return None


def device_of(module: nn.Module) -> torch.device:
    """Where a projection's weights are, be they parameters or buffers."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    raise CulnigError(f"{type(module).__name__} holds no weights, so it cannot be told where it runs")


def check_gradients(
    model: nn.Module, layers: Iterable[nn.Module], head: nn.Module, logits: Callable[[], torch.Tensor]
) -> None:
    """Prove that every site of a model with quantised projections gets its gradient.

    Runs the model forward and backward once on a few tokens, only where a projection is not plain.

    Args:
        model: frozen and in evaluation mode, with its embedding's output as the leaf.
        layers, head: of it, where projections are looked for.
        logits: runs it.

    Raises:
        CulnigError: names the projection that passes none, or whose gradient is not finite, and the remedy.
    """
    projections = _projections(model, layers, head)
    if all(why_not_plain(module) is None for module in projections.values()):
        return
    stopped: list[str] = []
    outputs: dict[str, torch.Tensor] = {}
    with contextlib.ExitStack() as stack:
        for path, module in projections.items():

            def look(module: nn.Module, args: tuple[Any, ...], output: Any, path: str = path) -> None:
                outputs[path] = output
                if args[0].requires_grad and not output.requires_grad:
                    stopped.append(path)

            stack.callback(module.register_forward_hook(look).remove)
        with torch.enable_grad():
            objective = logits().float().logsumexp(-1).sum()
        if not stopped:
            stopped = _unreached(objective, outputs)
    if stopped:
        path = stopped[0]
        kind = why_not_plain(projections[path]) or type(projections[path]).__name__
        raise CulnigError(
            f"{path} ({kind}) passes no gradient back, nor do {len(stopped) - 1} further projections, so neurons "
            "cannot be scored; load the model unquantised, or quantised by weights alone"
        )


def _projections(model: nn.Module, layers: Iterable[nn.Module], head: nn.Module) -> dict[str, nn.Module]:
    """Every linear projection of the layers, and the output embedding, by path."""
    inside = {module for layer in layers for module in layer.modules() if linear_shape(module) is not None}
    inside.add(head)
    return {path: module for path, module in model.named_modules() if module in inside}


def _unreached(objective: torch.Tensor, outputs: dict[str, torch.Tensor]) -> list[str]:
    """Projections whose output gets no gradient, or one that is not finite."""
    try:
        gradients = torch.autograd.grad(objective, list(outputs.values()), allow_unused=True)
    except (RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CulnigError(
            f"the quantised model has no backward pass ({reason:.200}), so neurons cannot be scored; load it "
            "unquantised, or quantised by weights alone"
        ) from error
    return [
        path
        for path, gradient in zip(outputs, gradients, strict=True)
        if gradient is None or not bool(gradient.isfinite().all())
    ]
