"""Columns of a projection that puts out head after head, queries, keys and values of each together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Interleaved:
    """Of every `period` columns, those from `first` to `last` - 1; `total` columns in all."""

    first: int
    last: int
    period: int
    total: int


Columns = slice | Interleaved
"""A site's columns of its tensor, in the order of its neurons."""


def places(columns: Columns) -> Sequence[int]:
    """Each column's place in the whole tensor."""
    if isinstance(columns, slice):
        return range(columns.start, columns.stop, columns.step or 1)
    starts = range(0, columns.total, columns.period)
    return [start + place for start in starts for place in range(columns.first, columns.last)]


def cut(tensor: torch.Tensor, columns: Columns) -> torch.Tensor:
    """The columns [..., K] of a tensor's last dimension: a view, or where they are interleaved a copy."""
    if isinstance(columns, slice):
        return tensor[..., columns]
    return _view(tensor, columns).flatten(-2)


def put(tensor: torch.Tensor, columns: Columns, values: torch.Tensor) -> None:
    """Write values [..., K] to the columns."""
    if isinstance(columns, slice):
        tensor[..., columns] = values
    else:
        _view(tensor, columns).copy_(values.unflatten(-1, (-1, columns.last - columns.first)))


def _view(tensor: torch.Tensor, columns: Interleaved) -> torch.Tensor:
    blocks: torch.Tensor = tensor.unflatten(-1, (-1, columns.period))
    return blocks[..., columns.first : columns.last]
