"""Projections that read one tensor, joined to one weight without a second copy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import nn

from culnig_fast.fused.trace import NotFusable

_own: ContextVar[bool] = ContextVar("memory of our own", default=False)


@dataclass(frozen=True)
class Joined:
    """One projection in place of several: weight [outputs, inputs], bias [outputs] or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@contextlib.contextmanager
def joined(projections: Sequence[nn.Linear]) -> Iterator[Joined]:
    """Inside the block the projections' weights are row ranges of one tensor, to the same bits; apart again after.

    A single projection stays as it is, and so do those whose rows lie one behind the other in memory already. Else
    memory beyond the weights is one projection set at a time, while they are joined and while they are taken apart.

    Raises:
        NotFusable: they would have to be moved out of memory that others may see too: other processes, or tensors of
            the caller that view the same storage.
    """
    if len(projections) == 1:
        yield Joined(projections[0].weight.detach(), _detached(projections[0].bias))
        return
    adjacent = _adjacent([projection.weight.detach() for projection in projections])
    if adjacent is None and not _own.get() and any(_may_be_seen(projection.weight) for projection in projections):
        raise NotFusable("its weights lie in memory that others may see, and would have to be moved out of it")
    weight = torch.cat([projection.weight.detach() for projection in projections]) if adjacent is None else adjacent
    biases = [_detached(projection.bias) for projection in projections]
    bias = None
    if any(b is not None for b in biases):
        zeros = (weight.new_zeros(projection.out_features) for projection in projections)
        bias = torch.cat([z if b is None else b for z, b in zip(zeros, biases, strict=True)])
    if adjacent is not None:
        yield Joined(weight, bias)
        return
    start = 0
    for projection in projections:
        projection.weight.data = weight[start : start + projection.out_features]
        start += projection.out_features
    try:
        yield Joined(weight, bias)
    finally:
        for projection in projections:
            projection.weight.data = projection.weight.data.clone()


@contextlib.contextmanager
def own_memory() -> Iterator[None]:
    """Inside the block the memory of all weights is the engine's, and nobody else looks at it."""
    token = _own.set(True)
    try:
        yield
    finally:
        _own.reset(token)


def overlapping(parameters: Iterable[nn.Parameter]) -> set[int]:
    """ids of the parameters that share memory with another: joining would tear them from it."""
    spans = sorted(
        ((p.data_ptr(), p.data_ptr() + p.nbytes, id(p)) for p in parameters if p.nbytes and not p.is_meta),
    )
    found: set[int] = set()
    end, owner = 0, 0
    for start, stop, parameter in spans:
        if start < end:
            found |= {owner, parameter}
        if stop > end:
            end, owner = stop, parameter
    return found


def _may_be_seen(weight: torch.Tensor) -> bool:
    """Whether a weight's memory is shared between processes, or a part of something larger."""
    if weight.device.type == "cpu" and weight.is_shared():  # on a GPU torch says that of every tensor
        return True
    return weight.untyped_storage().nbytes() > weight.nbytes


def _adjacent(weights: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The weights as one tensor, when each begins where the one before ends in the same memory; else None."""
    first, end = weights[0], weights[0].data_ptr()
    storage = first.untyped_storage().data_ptr()
    for weight in weights:
        same = weight.untyped_storage().data_ptr() == storage and weight.dtype == first.dtype
        if weight.is_meta or not weight.is_contiguous() or not same or weight.data_ptr() != end:
            return None
        end += weight.nbytes
    rows = sum(weight.shape[0] for weight in weights)
    return first.as_strided((rows, first.shape[1]), first.stride(), first.storage_offset())


def _detached(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach()
