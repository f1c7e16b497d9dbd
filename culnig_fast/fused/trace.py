"""What passes through a decoder layer's modules when it runs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from culnig_fast.architecture import SiteLocation
from culnig_fast.interleaved import cut
from culnig_fast.probing.layer import LayerProbe


class NotFusable(Exception):
    """A layer is built otherwise; the text is the reason that the engine reports."""


class _Attentions(TorchFunctionMode):
    """Keeps every call of scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.calls.append((args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@dataclass
class Trace:
    """What passed through a layer's modules. Tensors are kept, so that no two share an address by chance."""

    calls: list[tuple[nn.Module, torch.Tensor, torch.Tensor]]
    attentions: list[tuple[tuple[Any, ...], dict[str, Any]]]
    result: Any

    def call_of(self, module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """(input, output) of a module; NotFusable unless it was called exactly once."""
        found = [(given, made) for called, given, made in self.calls if called is module]
        if len(found) != 1:
            raise NotFusable(f"{type(module).__name__} is called {len(found)} times in a layer's pass")
        return found[0]

    def input_of(self, module: nn.Module) -> torch.Tensor:
        """What the module read."""
        return self.call_of(module)[0]

    def output_of(self, module: nn.Module) -> torch.Tensor:
        """What the module put out."""
        return self.call_of(module)[1]

    def columns_of(self, location: SiteLocation) -> torch.Tensor:
        """A site's own columns of what its projection put out."""
        return cut(self.output_of(location.module), location.columns)


def record(probe: LayerProbe) -> Trace:
    """Run the recorded call once more, looking at every module inside the layer."""
    calls: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
        if given is not None and isinstance(output, torch.Tensor):
            calls.append((module, given, output))

    with contextlib.ExitStack() as stack:
        for module in list(probe.layer.modules())[1:]:
            stack.callback(module.register_forward_hook(keep, with_kwargs=True).remove)
        attentions = stack.enter_context(_Attentions())
        result = probe.run()
    return Trace(calls, attentions.calls, result)
