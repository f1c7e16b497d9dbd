"""Swaps fused layers into a model for the length of a block, each proved on a recorded call first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from culnig_fast.architecture import Architecture, SiteLocation
from culnig_fast.fused.joining import joined, overlapping
from culnig_fast.fused.layer import FusedLayer
from culnig_fast.fused.operations import Scoring
from culnig_fast.fused.parts import LayerParts, find_parts
from culnig_fast.fused.trace import NotFusable
from culnig_fast.probing.layer import LayerProbe, distance, same_output
from culnig_fast.probing.recording import recorded_layers


@dataclass
class Fusion:
    """Which layers run fused.

    Attributes:
        layers: their indices.
        reasons: layer index → why the layer stays on taps.
        last_position: whether the last layer leaves out what no answer depends on.
    """

    layers: tuple[int, ...] = ()
    reasons: dict[int, str] = field(default_factory=dict)
    last_position: bool = False

    def describe(self) -> dict[str, Any]:
        """JSON-ready: fused layers, whether the last one is cut to its last position, and layers on taps by reason."""
        taps: dict[str, list[int]] = {}
        for layer, reason in sorted(self.reasons.items()):
            taps.setdefault(reason, []).append(layer)
        return {"fused": list(self.layers), "last_position": self.last_position, "taps": taps}


@contextlib.contextmanager
def fused_layers(architecture: Architecture, scoring: Scoring, logits: Callable[[], torch.Tensor]) -> Iterator[Fusion]:
    """Inside the block every layer that can be fused is; parameters keep their bits, and all is undone after.

    Args:
        architecture: the model, frozen and in evaluation mode.
        scoring: where the layers' scores go.
        logits: runs the model on a few right-padded tokens; its result must not change by fusing.
    """
    model = architecture.model
    dtype = architecture.embedding.weight.dtype
    shared = overlapping(model.parameters())
    fusion = Fusion()
    fused: dict[int, FusedLayer] = {}
    with contextlib.ExitStack() as stack, torch.no_grad():
        vocabulary, layers = int(architecture.embedding.weight.shape[0]), list(architecture.layers)
        with (
            recorded_layers(model, layers, vocabulary) as probes,
            recorded_layers(model, layers, vocabulary, far=True) as far,
        ):
            for index, calls in enumerate(zip(probes, far, strict=True)):
                sites = [location for location in architecture.locations if location.site.layer_idx == index]
                try:
                    fused[index] = fuse_layer(calls, sites, scoring, shared, index == 0, stack)
                except NotFusable as error:
                    fusion.reasons[index] = str(error)
        expected = logits()
        for index, layer in fused.items():
            stack.enter_context(replaced_forward(architecture.layers[index], layer))
        last = fused.get(len(architecture.layers) - 1)
        if last is not None:
            last.last_position = True
        if last is not None and not same_model(logits(), expected, dtype):
            last.last_position = False
        fusion.last_position = last is not None and last.last_position
        if fused and not (fusion.last_position or same_model(logits(), expected, dtype)):
            stack.close()
            fusion.reasons |= dict.fromkeys(fused, "its model answers otherwise when fused")
            fused = {}
        fusion.layers = tuple(fused)
        with torch.enable_grad():
            yield fusion


def fuse_layer(
    calls: tuple[LayerProbe, LayerProbe],
    sites: list[SiteLocation],
    scoring: Scoring,
    shared: set[int],
    first: bool,
    stack: contextlib.ExitStack,
) -> FusedLayer:
    """One layer's stand-in, proved to return what the layer does; its projections stay joined until the stack ends.

    Args:
        calls: of the layer, on its first tokens and at far positions.
        sites: the layer's neurons.
        scoring: where scores go.
        shared: parameters (by id) whose memory others share.
        first: no gradient is needed below the layer.
        stack: undoes it.

    Raises:
        NotFusable: it cannot be fused; the message says why.
    """
    parts = find_parts(calls[0], sites)
    if any(id(parameter) in shared for parameter in calls[0].layer.parameters()):
        raise NotFusable("its weights share memory with others")
    expected = [probe.run() for probe in calls]
    with contextlib.ExitStack() as own:
        layer = join_layer(parts, scoring, first, own)
        got = [layer(*probe.args, **probe.kwargs) for probe in calls]
        for one, other in zip(got, expected, strict=True):
            here, right = (one[0], other[0]) if parts.returns_tuple else (one, other)
            if not right.isfinite().all():
                raise NotFusable("what it puts out is NaN or infinite: its weights are damaged, or its dtype overflows")
            if not same_output(here, right):
                raise NotFusable("it computes something else than a gated MLP and rotary attention between RMS norms")
        stack.push(own.pop_all())
    return layer


def join_layer(parts: LayerParts, scoring: Scoring, first: bool, stack: contextlib.ExitStack) -> FusedLayer:
    """A layer's stand-in from parts that were proved before."""
    qkv, gate_up = (stack.enter_context(joined(projections)) for projections in (parts.qkv, parts.gate_up))
    return FusedLayer(parts, qkv, gate_up, scoring, first=first)


@contextlib.contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside the block the module's forward is another."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def same_model(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether two runs of one model agree.

    Wider than for one layer: in bf16 two right paths through sixty layers end a tenth apart, a wrong one a whole.
    """
    return distance(got, expected) <= 1e-4 + 24 * torch.finfo(dtype).eps
