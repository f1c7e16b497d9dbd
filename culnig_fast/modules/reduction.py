"""One module's activation × gradient, reduced over whatever positions it has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from culnig_kernels.reference.scores import counted_positions

from culnig_fast.backend import Operations
from culnig_fast.errors import CulnigError
from culnig_fast.modules.sites import ModuleSite, neurons_last
from culnig_fast.positions import counted


@dataclass(frozen=True)
class BatchPositions:
    """How many samples a batch has, and which of their positions count.

    Attributes:
        samples: S.
        lengths: int64 [S] real positions; None means all.
        keep: bool [S, T]; None means all real ones.
    """

    samples: int
    lengths: torch.Tensor | None
    keep: torch.Tensor | None


def checked_batch(samples: int, lengths: torch.Tensor | None, positions: torch.Tensor | None) -> BatchPositions:
    """The batch's positions; CulnigError for lengths or a mask of another shape, or that leave a sample none.

    Args:
        samples: of the batch.
        lengths: int64 [samples] real positions; None means all.
        positions: bool [samples, T] that count; None means all real ones.
    """
    if lengths is not None:
        if lengths.shape != (samples,) or lengths.dtype not in (torch.int32, torch.int64):
            raise CulnigError(f"lengths must be int64 [{samples}], not {lengths.dtype} {list(lengths.shape)}")
        if lengths.device.type == "cpu" and int(lengths.min()) < 1:
            raise CulnigError("lengths count from 1; a sample without positions cannot be scored")
    if positions is None:
        return BatchPositions(samples, lengths, None)
    rows = positions.shape[-1] if lengths is None else lengths
    whole = torch.full((samples,), rows, device=positions.device) if isinstance(rows, int) else rows
    return BatchPositions(samples, lengths, counted(positions, whole))


def reduced(
    site: ModuleSite,
    act: torch.Tensor,
    grad: torch.Tensor,
    batch: BatchPositions,
    ops: Operations,
    reduction: str,
) -> torch.Tensor:
    """A site's scores, float32 [batch, columns], of what passed there.

    Raises:
        CulnigError: the tensor does not hold the batch's samples, or its positions are not those of lengths or mask.
    """
    act, grad = (_by_sample(site, neurons_last(site, tensor), batch)[..., site.columns] for tensor in (act, grad))
    lengths, keep = _that_count(site, act, batch)
    return ops.actgrad_reduce(act, grad, lengths, reduction, keep=keep)


def counted_rows(site: ModuleSite, last: torch.Tensor, batch: BatchPositions) -> torch.Tensor:
    """[rows, K]: the rows of a tensor with its neurons last, [..., K], at positions that count; errors as `reduced`."""
    rows = _by_sample(site, last, batch)
    return rows[counted_positions(rows, *_that_count(site, rows, batch))]


def _that_count(
    site: ModuleSite, by_sample: torch.Tensor, batch: BatchPositions
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """int64 [S] lengths and bool [S, T] mask, or None, for [S, T, K]; all of a site of one position a sample."""
    samples, rows = by_sample.shape[:2]
    lengths, keep = torch.full((samples,), rows), None
    if rows > 1 and (batch.lengths is not None or batch.keep is not None):
        if batch.keep is not None and batch.keep.shape[1] != rows:
            raise CulnigError(
                f"{site} has {rows} positions a sample, and the mask {batch.keep.shape[1]}; they must agree"
            )
        lengths = lengths if batch.lengths is None else batch.lengths
        if lengths.device.type == "cpu" and int(lengths.max()) > rows:
            raise CulnigError(f"{site} has {rows} positions a sample, fewer than the length {int(lengths.max())}")
        keep = None if batch.keep is None else batch.keep.to(by_sample.device)
    return lengths, keep


def _by_sample(site: ModuleSite, tensor: torch.Tensor, batch: BatchPositions) -> torch.Tensor:
    """[batch, positions, K] of [batch, ..., K] or [batch·positions, K]."""
    if tensor.shape[0] != batch.samples:
        if tensor.dim() != 2 or tensor.shape[0] % batch.samples:
            raise CulnigError(
                f"{site} is {list(tensor.shape)} with the neurons last, which does not start with the batch's "
                f"{batch.samples} samples; tap another module, or give `dim`"
            )
        per_sample: torch.Tensor = tensor.unflatten(0, (batch.samples, -1))
        return per_sample
    return tensor.unsqueeze(1) if tensor.dim() == 2 else tensor.flatten(1, -2)
