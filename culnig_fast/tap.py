"""The autograd tap: an identity whose backward scores what passes."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from culnig_fast.errors import CulnigError
from culnig_fast.interleaved import Columns, cut
from culnig_fast.mixtures.experts import Routing


class Location(Protocol):
    """Where a tap sits, and which part of what passes there it shows."""

    @property
    def module(self) -> Any:
        """The module whose output or input is tapped."""
        ...

    @property
    def columns(self) -> Columns:
        """Of the tensor's last dimension."""
        ...

    @property
    def tensor(self) -> str:
        """`output` or `input`."""
        ...


L = TypeVar("L", bound=Location)
Score = Callable[..., None]
"""Receives a location, its activation [S, ..., K] and the gradient [S, ..., K] that has just arrived there; of routed
experts activation and gradient [rows, K] and, as a fourth argument, the `Routing` of the rows."""
Guard = Callable[[list[L], torch.Tensor], Callable[[torch.Tensor], None] | None]
"""Receives a tensor's locations and the tensor as it passes; gives what is called with it when its gradient comes, or
None."""


class _Tap(torch.autograd.Function):
    """Hands its input through; in backward, shows (activation, gradient) and hands both through.

    Nothing is retained that the projection's consumer does not keep anyway: the saved activation is the same
    storage. Recomputation (gradient checkpointing) builds a new tap, and only that one's backward runs, so a neuron
    is scored once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        activation: torch.Tensor,
        anchor: torch.Tensor | None,
        copied: bool,
        show: Callable[[torch.Tensor, torch.Tensor], None],
    ) -> torch.Tensor:
        ctx.save_for_backward(activation)
        ctx.show = show
        return activation.clone() if copied else activation.view_as(activation)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        (activation,) = ctx.saved_tensors
        ctx.show(activation, grad)
        return grad if ctx.needs_input_grad[0] else None, None, None, None


def tapped(
    activation: torch.Tensor,
    show: Callable[[torch.Tensor, torch.Tensor], None],
    *,
    anchor: torch.Tensor | None = None,
    copied: bool = False,
) -> torch.Tensor:
    """The activation, whose gradient will be shown beside it as it passes.

    Args:
        activation: any shape.
        show: takes the activation and the gradient.
        anchor: a scalar that requires a gradient; with it the tap is reached by every backward pass, also where nothing
            below requires one, and `torch.autograd.grad(·, anchor)` computes nothing but what the taps need.
        copied: hand a copy on, for a consumer that overwrites its input.
    """
    out: torch.Tensor = _Tap.apply(activation, anchor, copied, show)
    return out


def was_overwritten(error: BaseException | None) -> bool:
    """Whether torch refused an operation that writes over what a tap handed on."""
    return isinstance(error, RuntimeError) and "_Tap" in str(error) and "inplace" in str(error)


def hook_tensor(module: nn.Module, side: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Hook a module so that what it puts out (`side` "output") or takes in ("input") goes through `change`.

    Of a tuple that is the first entry, of a call by keywords alone the first one.

    Returns:
        the hook's handle; remove it to undo.

    Raises:
        CulnigError: when the module runs, for something that is no tensor.
    """

    def changed(value: Any) -> torch.Tensor:
        if not isinstance(value, torch.Tensor):
            verb = "puts out" if side == "output" else "takes in"
            raise CulnigError(
                f"a {type(module).__name__} {verb} a {type(value).__name__} first, not a tensor; name a module inside "
                "it, or the other side"
            )
        return change(value)

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        return (changed(output[0]), *output[1:]) if isinstance(output, tuple) else changed(output)

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if args:
            return (changed(args[0]), *args[1:]), kwargs
        first = next(iter(kwargs), "nothing")
        return args, {**kwargs, first: changed(kwargs.get(first))}

    if side == "output":
        return module.register_forward_hook(after)
    return module.register_forward_pre_hook(before, with_kwargs=True)


def attach_taps(
    locations: Sequence[L],
    score: Score,
    *,
    anchor: torch.Tensor | None = None,
    copied: Container[L] = (),
    guard: Guard[L] | None = None,
) -> list[Any]:
    """Hook a tap on every tensor that holds one of the locations; those of one tensor share one.

    Which tensor of a module's is meant, see `hook_tensor`.

    Args:
        locations: where.
        score: what is called for each, in backward.
        anchor: see `tapped`.
        copied: the locations of tensors that are handed on as copies, see `tapped`.
        guard: looks at each tensor as it passes, and again before it is scored.

    Returns:
        hook handles; remove them to undo.
    """
    tensors: dict[tuple[nn.Module, str, str | None], list[Any]] = {}
    for location in locations:
        part = None if getattr(location, "experts", None) is None else location.part  # type: ignore[attr-defined]
        tensors.setdefault((location.module, location.tensor, part), []).append(location)
    handles = []
    for (module, tensor, part), sites in tensors.items():
        tap = partial(_tap, sites, score, anchor, any(site in copied for site in sites), guard)
        handles.append(hook_tensor(module, tensor, tap) if part is None else sites[0].experts.attach(part, tensor, tap))
    return handles


def no_score(*_: Any) -> None:
    """A `Score` that does nothing, for taps that are there to hold or to look."""


def _tap(
    sites: list[L],
    score: Score,
    anchor: torch.Tensor | None,
    copied: bool,
    guard: Guard[L] | None,
    activation: torch.Tensor,
    *routing: Routing,
) -> torch.Tensor:
    """A tensor of these sites, tapped; `routing` comes with rows of routed experts."""
    look_again = None if guard is None else guard(sites, activation)

    def show(activation: torch.Tensor, grad: torch.Tensor) -> None:
        if look_again is not None:
            look_again(activation)
        for site in sites:
            score(site, cut(activation, site.columns), cut(grad, site.columns), *routing)

    return tapped(activation, show, anchor=anchor, copied=copied)
