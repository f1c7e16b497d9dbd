"""The autograd tap: an identity whose backward scores what passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from culnig_fast.architecture import SiteLocation
from culnig_fast.experts import Change, Routing

Score = Callable[..., None]
"""Receives a site, its activation [S, T, K] and the gradient [S, T, K] that has just arrived there; of routed experts
activation and gradient [rows, K] and, as a fourth argument, the `Routing` of the rows."""


class _Tap(torch.autograd.Function):
    """Hands its input through; in backward, shows (activation, gradient) to each location and hands both through.

    Nothing is retained that the projection's consumer does not keep anyway: the saved activation is the same
    storage. Recomputation (gradient checkpointing) builds a new tap, and only that one's backward runs, so a neuron
    is scored once.
    """

    @staticmethod
    def forward(ctx: Any, activation: torch.Tensor, locations: Sequence[SiteLocation], score: Score) -> torch.Tensor:
        ctx.save_for_backward(activation)
        ctx.locations, ctx.score = locations, score
        return activation.view_as(activation)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (activation,) = ctx.saved_tensors
        for location in ctx.locations:
            columns = location.columns
            ctx.score(location, activation[..., columns], grad[..., columns])
        return grad, None, None


def attach_taps(locations: Sequence[SiteLocation], score: Score) -> list[Any]:
    """Hook a tap on every projection that holds one of the locations; sites of a fused projection share one.

    Returns:
        hook handles; remove them to undo.
    """
    outputs: dict[nn.Module, list[SiteLocation]] = {}
    inputs: dict[nn.Module, list[SiteLocation]] = {}
    handles = _attach_expert_taps([location for location in locations if location.experts is not None], score)
    for location in [location for location in locations if location.experts is None]:
        (outputs if location.tensor == "output" else inputs).setdefault(location.module, []).append(location)
    for module, sites in outputs.items():
        handles.append(
            module.register_forward_hook(lambda m, args, output, sites=sites: _Tap.apply(output, sites, score))
        )
    for module, sites in inputs.items():
        handles.append(
            module.register_forward_pre_hook(
                lambda m, args, sites=sites: (_Tap.apply(args[0], sites, score), *args[1:])
            )
        )
    return handles


def _attach_expert_taps(locations: Sequence[SiteLocation], score: Score) -> list[Any]:
    """The same on routed experts, one tap for the sites of one tensor."""
    places: dict[tuple[nn.Module, str, Literal["output", "input"]], list[SiteLocation]] = {}
    for location in locations:
        places.setdefault((location.module, location.part, location.tensor), []).append(location)

    def tapped(sites: list[SiteLocation]) -> Change:
        def change(values: torch.Tensor, routing: Routing) -> torch.Tensor:
            out: torch.Tensor = _Tap.apply(values, sites, lambda site, act, grad: score(site, act, grad, routing))
            return out

        return change

    handles = []
    for (_, part, tensor), sites in places.items():
        experts = sites[0].experts
        if experts is not None:
            handles.append(experts.attach(part, tensor, tapped(sites)))
    return handles
