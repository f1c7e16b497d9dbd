"""Forward hooks on sites: one that looks at activations, one that replaces them; both gone when the block ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from culnig_fast.architecture import SiteLocation
from culnig_fast.tap import hook_tensor

Change = Callable[[torch.Tensor], torch.Tensor]
"""Takes the whole tensor of a projection, [rows, T, columns], and gives what stands in its place."""


@contextlib.contextmanager
def observed(
    locations: Sequence[SiteLocation], look: Callable[[SiteLocation, torch.Tensor], None], rows: Callable[[], int]
) -> Iterator[None]:
    """Call `look(location, activation [rows, T, K])` for every site as the forward pass reaches it.

    Args:
        locations: the sites.
        look: must not change the activation.
        rows: how many rows the batch in progress has; some models run their MLP on [rows·T, hidden].
    """

    def show(location: SiteLocation, tensor: torch.Tensor) -> None:
        look(location, _by_row(tensor, rows())[..., location.columns])

    with contextlib.ExitStack() as stack:
        for location in locations:
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


def _by_row(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    return tensor.unflatten(0, (rows, -1)) if tensor.dim() == 2 else tensor
