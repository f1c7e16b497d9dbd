"""Activation × gradient per sample, and sums of samples per group."""

from __future__ import annotations

import itertools

import torch

from culnig_kernels import validate
from culnig_kernels.reference.precision import work_dtype
from culnig_kernels.validate import Segments


def actgrad_reduce(
    act: torch.Tensor,
    grad: torch.Tensor,
    lengths: torch.Tensor | None = None,
    reduction: str = "max",
    padding: str = "exclude",
    *,
    cu_seqlens: torch.Tensor | None = None,
    keep: torch.Tensor | None = None,
) -> torch.Tensor:
    """Activation × gradient of each sample, reduced over its token positions.

    Args:
        act: [S, T, K] right-padded or [T, K] packed activations, any float dtype, any strides.
        grad: of act's shape, gradients of the objective with respect to them.
        lengths: int32 or int64 [S] real tokens of each padded sample, in 1…T; the rest of a row is padding.
        reduction: `max` (CULNIG, section 2), `sum` (first-order effect of zeroing the neuron everywhere), `mean`,
            `absmax` (the largest absolute value, as such: never below 0) or `last` (the last position that counts).
        padding: `exclude` leaves padded positions out; `zero` counts each as a product of 0, for `max` and `sum` alone.
        cu_seqlens: int32 or int64 [S+1] instead of lengths, for packed samples: 0 and the end of each sample.
        keep: bool of act's shape without K: only positions marked there count, and of those only the real ones.

    Returns:
        float32 [S, K] (float64 for float64 inputs). Products are formed in that type whatever the inputs hold. NaN in
        gives NaN out.

    Raises:
        ValueError: shapes disagree, an option is unknown, or a sample is empty (seen for CPU lengths only, and for
            a CPU `keep` beside them).
    """
    segments = check_actgrad(act, grad, lengths, reduction, padding, cu_seqlens, keep)
    work = work_dtype(act, grad)
    return reduce_positions(act.to(work) * grad.to(work), segments, reduction, padding, keep)


def reduce_positions(
    product: torch.Tensor,
    segments: Segments,
    reduction: str,
    padding: str = "exclude",
    keep: torch.Tensor | None = None,
) -> torch.Tensor:
    """[S, K]: each sample's rows of product, [S, T, K] or packed [T, K], reduced over those that count."""
    if segments.packed:
        spans = [slice(*ends) for ends in itertools.pairwise(segments.bounds.tolist())]
        rows = [product[span] if keep is None else product[span][keep[span]] for span in spans]
        return torch.stack([_reduce_rows(part, reduction) for part in rows])
    counted = counted_positions(product, segments.bounds, keep)[:, :, None]
    if reduction == "last":
        return product.gather(1, last_counted(counted).expand(-1, 1, product.shape[-1]))[:, 0]
    if reduction == "absmax":
        product = product.abs()
    if reduction in ("max", "absmax"):
        return product.masked_fill(~counted, 0.0 if padding == "zero" else -torch.inf).amax(1)
    total = product.masked_fill(~counted, 0.0).sum(1)
    return total / counted.sum(1) if reduction == "mean" else total


def counted_positions(x: torch.Tensor, lengths: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """bool [S, T]: the real positions of x [S, T, K], of these the kept ones."""
    counted = torch.arange(x.shape[1], device=x.device) < lengths.to(x.device)[:, None]
    return counted if keep is None else counted & keep.to(x.device)


def last_counted(counted: torch.Tensor) -> torch.Tensor:
    """int64 [S, 1, 1]: the last position of counted [S, T, 1] that is true."""
    place = torch.arange(counted.shape[1], device=counted.device)[None, :, None]
    return (place * counted).amax(1, keepdim=True)


def _reduce_rows(rows: torch.Tensor, reduction: str) -> torch.Tensor:
    """[K] of [T, K]; of no rows -inf for a maximum, and 0, or NaN for a mean, else."""
    if not len(rows) and reduction != "mean":
        return rows.new_full(rows.shape[1:], -torch.inf if reduction in ("max", "absmax") else 0.0)
    if reduction == "max":
        return rows.amax(0)
    if reduction == "absmax":
        return rows.abs().amax(0)
    if reduction == "last":
        return rows[-1]
    return rows.sum(0) if reduction == "sum" else rows.sum(0) / len(rows)


def accumulate(
    scores: torch.Tensor,
    weight: torch.Tensor,
    group: torch.Tensor,
    totals: torch.Tensor,
    clamp_below_zero: bool = False,
) -> None:
    """totals[group[s]] += weight[s] · scores[s] for every sample s, in place, samples in order.

    Args:
        scores: [S, K] any float dtype.
        weight: float64 [S].
        group: int64 [S], each in 0…G−1.
        totals: float64 [G, K], changed in place.
        clamp_below_zero: replace a negative weighted score by 0 first (control sets; CULNIG, section 3).

    Raises:
        ValueError: shapes disagree or totals are not float64.
    """
    check_accumulate(scores, weight, group, totals)
    weighted = scores.to(torch.float64) * weight.to(torch.float64)[:, None]
    if clamp_below_zero:
        weighted.clamp_(min=0.0)
    if totals.device.type == "cpu":
        totals.index_add_(0, group, weighted)  # sample after sample
        return
    # On a GPU one call would add with atomics, in whatever order; one sample a call has nothing to collide
    # with.
    for s in range(len(weighted)):
        totals.index_add_(0, group[s : s + 1], weighted[s : s + 1])


def check_actgrad(
    act: torch.Tensor,
    grad: torch.Tensor,
    lengths: torch.Tensor | None,
    reduction: str,
    padding: str,
    cu_seqlens: torch.Tensor | None = None,
    keep: torch.Tensor | None = None,
) -> Segments:
    """The samples of act; raise ValueError, naming the argument, unless `actgrad_reduce` can take them."""
    validate.option("reduction", reduction, validate.REDUCTIONS)
    validate.option("padding", padding, validate.PADDINGS)
    if padding == "zero" and (keep is not None or reduction not in validate.FOLDED_REDUCTIONS):
        raise ValueError(
            f"padding 'zero' goes with reduction {' or '.join(validate.FOLDED_REDUCTIONS)} and without keep, "
            f"not with {reduction!r}{' and keep' if keep is not None else ''}"
        )
    segments = validate.segments("act", act, lengths, cu_seqlens)
    validate.shape("grad", grad, tuple(act.shape))
    if keep is not None:
        validate.keep("act", act, keep, segments)
    return segments


def check_accumulate(scores: torch.Tensor, weight: torch.Tensor, group: torch.Tensor, totals: torch.Tensor) -> None:
    """Raise ValueError, naming the argument, unless the arguments of `accumulate` fit together."""
    samples = scores.shape[0]
    if scores.dim() != 2 or totals.dim() != 2 or totals.shape[1] != scores.shape[1]:
        raise ValueError(f"scores [S, K] and totals [G, K] disagree: {list(scores.shape)}, {list(totals.shape)}")
    validate.shape("weight", weight, (samples,))
    validate.shape("group", group, (samples,))
    if group.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"group must be int32 or int64, not {group.dtype}")
    if totals.dtype != torch.float64:
        raise ValueError(f"totals must be float64, not {totals.dtype}")
    if validate.seen_by_host(group) and not ((group >= 0) & (group < totals.shape[0])).all():
        raise ValueError(f"group must lie in 0…{totals.shape[0] - 1}, the rows of totals")
