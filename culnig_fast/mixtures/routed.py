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
    packed segments, one for each (sample, expert) that met, so the reduction never sees an empty one and no infinity
    arises that a weight of 0 would turn to NaN.

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
    rows = counts_too.nonzero().flatten()
    rows = rows[torch.argsort(segment[rows], stable=True)]
    counts = torch.bincount(segment[rows], minlength=batch * count)
    met = counts.nonzero().flatten()
    work = torch.float64 if torch.float64 in (act.dtype, grad.dtype) else torch.float32
    scores = torch.zeros(batch * count, columns, dtype=work, device=act.device)
    if len(met):
        ends = torch.nn.functional.pad(counts[met].cumsum(0), (1, 0))
        scores[met] = reduce(act[rows].contiguous(), grad[rows].contiguous(), None, reduction, cu_seqlens=ends)
    return scores.view(batch, count * columns)
