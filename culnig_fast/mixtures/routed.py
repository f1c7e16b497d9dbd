"""Scores of routed experts: each sample's maximum or sum over its tokens that reached the expert, and no others."""

from __future__ import annotations

from collections.abc import Callable

import torch

from culnig_fast.mixtures.experts import Routing


def routed_scores(
    reduce: Callable[..., torch.Tensor],
    act: torch.Tensor,
    grad: torch.Tensor,
    lengths: torch.Tensor,
    positions: int,
    reduction: str,
    routing: Routing,
    experts: int,
    keep: torch.Tensor | None = None,
) -> torch.Tensor:
    """Activation × gradient of each sample and expert, reduced over the sample's real tokens at that expert.

    A token that was not routed to an expert has no activation there: it is absent, not 0. The rows are brought into
    packed segments, one for each (sample, expert), and those where the two did not meet are 0 in the end: no infinity
    is left that a weight of 0 would turn to NaN.

    Args:
        reduce: `actgrad_reduce` of the backend.
        act: [S, K] rows as `routing` says.
        grad: of act's shape.
        lengths: int64 [batch] real tokens of each sample; what follows them is padding.
        positions: tokens of each sample with its padding.
        reduction: as for `actgrad_reduce`; `last` is the sample's last real token, at the experts that it reached.
        routing: which token and expert each row is of.
        experts: how many there are.
        keep: bool [batch, positions] of the tokens that count; None means all real ones.

    Returns:
        float32 [batch, experts · K] (float64 for float64 inputs), or [batch, K] when all rows are of one expert; 0
        for an expert that none of the sample's tokens that count reached, which adds nothing to a sum over samples.
    """
    batch, columns = len(lengths), act.shape[-1]
    count = 1 if routing.only is not None else experts
    sample, position = routing.tokens // positions, routing.tokens % positions
    segment = sample * count + (0 if routing.only is not None else routing.experts)
    counts_too = position < lengths[sample]
    if keep is not None:
        counts_too &= keep[sample, position]
    if reduction == "last":  # of the sample; the last token that an expert saw may be an earlier one
        counts_too &= position == lengths[sample] - 1
        reduction = "sum"  # of one token, where there is one
    segments = batch * count
    pack = _all_segments if act.device.type == "cuda" else _met_segments
    rows, ends, met = pack(torch.where(counts_too, segment, segments), segments)
    work = torch.float64 if torch.float64 in (act.dtype, grad.dtype) else torch.float32
    if met is not None and not len(met):
        return torch.zeros(batch, count * columns, dtype=work, device=act.device)
    found = reduce(act[rows].contiguous(), grad[rows].contiguous(), None, reduction, cu_seqlens=ends)
    if met is None:
        scores = found.masked_fill((ends.diff() == 0)[:, None], 0.0)
    else:
        scores = torch.zeros(segments, columns, dtype=work, device=act.device)
        scores[met] = found
    return scores.view(batch, count * columns)


def _met_segments(segment: torch.Tensor, segments: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(rows in the order of their segments, bounds of the segments that have some, which these are; None for all)."""
    rows = (segment < segments).nonzero().flatten()
    rows = rows[torch.argsort(segment[rows], stable=True)]
    counts = torch.bincount(segment[rows], minlength=segments)
    met = counts.nonzero().flatten()
    return rows, torch.nn.functional.pad(counts[met].cumsum(0), (1, 0)), met


def _all_segments(segment: torch.Tensor, segments: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The same with bounds of all segments, which the host need not wait for; rows of none come last."""
    ordered, rows = torch.sort(segment, stable=True)
    return rows, torch.searchsorted(ordered, torch.arange(segments + 1, device=segment.device)), None
