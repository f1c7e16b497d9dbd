"""Tensors that a model writes over after they passed a tap.

Kernels that save memory rotate queries where they lie, or put a gradient where the activation was (Liger, Unsloth).
Those in torch's own words (`inplace=True`) are refused by autograd; of a custom kernel it knows nothing, and activation
× gradient would silently become something else. So it is tried, and what is written over is tapped by a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from culnig_fast.errors import CulnigError
from culnig_fast.tap import Location, attach_taps, no_score, was_overwritten

L = TypeVar("L", bound=Location)

_LOOKED_AT = 4096  # elements of a tensor


class OverwrittenError(CulnigError):
    """A model writes over a tensor that is scored; the message names it."""


def overwritten(locations: Sequence[L], run: Callable[[], object]) -> list[L]:
    """The locations whose tensor does not last from forward to backward.

    Args:
        locations: where taps will be.
        run: runs the model forward and backward once, on a few tokens.
    """
    changed: list[L] = []

    def guard(sites: list[L], activation: torch.Tensor) -> Callable[[torch.Tensor], None]:
        before = activation.detach().clone()

        def look_again(after: torch.Tensor) -> None:
            if not _same(before, after):
                changed.extend(sites)

        return look_again

    handles = attach_taps(locations, no_score, guard=guard)
    try:
        with torch.enable_grad():
            run()
    except RuntimeError as error:
        if not was_overwritten(error):
            raise
        return list(locations)  # which one it was, torch does not say
    finally:
        for handle in handles:
            handle.remove()
    return changed


def remembered(name: str, tensor: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """Remember some elements of a tensor, for where no trial can be made.

    Returns:
        what to call with the tensor later: it waits for the device, and raises OverwrittenError when the tensor is no
        longer as it was.
    """
    elements = _some(tensor)

    def look_again(after: torch.Tensor) -> None:
        if not _same(elements, _some(after)):
            raise OverwrittenError(
                f"the model writes over what {name} hands on, and its activation is lost when its gradient comes; give "
                "copied=True"
            )

    return look_again


def _some(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // _LOOKED_AT)].clone()


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal, NaN included."""
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
