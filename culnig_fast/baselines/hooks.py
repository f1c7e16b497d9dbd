"""Forward hooks on sites: one that looks at activations, one that replaces them; both gone when the block ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from culnig_fast.architecture import SiteLocation
from culnig_fast.errors import CulnigError
from culnig_fast.interleaved import cut
from culnig_fast.mixtures.experts import Change as RoutedChange
from culnig_fast.mixtures.experts import Routing
from culnig_fast.tap import hook_tensor

Change = Callable[[torch.Tensor], torch.Tensor]
"""Takes the whole tensor of a projection, [rows, T, columns], and gives what stands in its place."""


@contextlib.contextmanager
def observed(locations: Sequence[SiteLocation], look: Callable[..., None], rows: Callable[[], int]) -> Iterator[None]:
    """Call `look(location, activation [rows, T, K])` for every site as the forward pass reaches it.

    Of routed experts the activation is [tokens at experts, K], and `Routing` is a third argument.

    Args:
        locations: the sites.
        look: must not change the activation.
        rows: how many rows the batch in progress has; some models run their MLP on [rows·T, hidden].
    """

    def show(location: SiteLocation, tensor: torch.Tensor) -> None:
        look(location, cut(_by_row(tensor, rows()), location.columns))

    def show_routed(location: SiteLocation) -> RoutedChange:
        def unchanged(values: torch.Tensor, routing: Routing) -> torch.Tensor:
            look(location, cut(values, location.columns), routing)
            return values

        return unchanged

    with contextlib.ExitStack() as stack:
        for location in locations:
            if location.experts is not None:
                stack.enter_context(replaced_routed(location, show_routed(location)))
                continue
            if location.tensor == "output":
                handle = location.module.register_forward_hook(
                    lambda module, args, output, location=location: show(location, output)
                )
            else:
                handle = location.module.register_forward_pre_hook(
                    lambda module, args, location=location: show(location, args[0])
                )
            stack.callback(handle.remove)
        yield


@contextlib.contextmanager
def replaced(module: nn.Module, tensor: str, change: Change, rows: int) -> Iterator[None]:
    """What the module puts out (`tensor` "output") or takes in ("input") goes through `change` inside the block."""

    def changed(value: torch.Tensor) -> torch.Tensor:
        return change(_by_row(value, rows)).view(value.shape)

    handle = hook_tensor(module, tensor, changed)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def replaced_routed(location: SiteLocation, change: RoutedChange) -> Iterator[None]:
    """The same of routed experts: `change` is called with rows [tokens at experts, columns] and their routing."""
    if location.experts is None:
        raise CulnigError(f"{location.module_path} holds no routed experts")
    handle = location.experts.attach(location.part, location.tensor, change)
    try:
        yield
    finally:
        handle.remove()


def _by_row(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    return tensor.unflatten(0, (rows, -1)) if tensor.dim() == 2 else tensor
