"""Activation × gradient per sample, and sums of samples per group."""

from __future__ import annotations

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
) -> torch.Tensor:
    """Activation × gradient of each sample, reduced over its token positions.

    Args:
        act: [S, T, K] right-padded or [T, K] packed activations, any float dtype, any strides.
        grad: of act's shape, gradients of the objective with respect to them.
        lengths: int32 or int64 [S] real tokens of each padded sample, in 1…T; the rest of a row is padding.
        reduction: `max` (CULNIG, section 2) or `sum` (first-order effect of zeroing the neuron everywhere).
        padding: `exclude` leaves padded positions out; `zero` counts each as a product of 0.
        cu_seqlens: int32 or int64 [S+1] instead of lengths, for packed samples: 0 and the end of each sample.

    Returns:
        float32 [S, K] (float64 for float64 inputs). Products are formed in that type whatever the inputs hold. NaN in
        gives NaN out.

    Raises:
        ValueError: shapes disagree, an option is unknown, or a sample is empty (seen for CPU lengths only).
    """
    segments = check_actgrad(act, grad, lengths, reduction, padding, cu_seqlens)
    work = work_dtype(act, grad)
    return reduce_positions(act.to(work) * grad.to(work), segments, reduction, padding)


def reduce_positions(
    product: torch.Tensor, segments: Segments, reduction: str, padding: str = "exclude"
) -> torch.Tensor:
    """[S, K] maximum or sum over each sample's rows of product, [S, T, K] or packed [T, K]."""
    if segments.packed:
        parts = product.split(segments.bounds.diff().tolist())
        return torch.stack([part.amax(0) if reduction == "max" else part.sum(0) for part in parts])
    neutral = 0.0 if padding == "zero" or reduction == "sum" else -torch.inf
    padded = torch.arange(product.shape[1], device=product.device) >= segments.bounds.to(product.device)[:, None]
    product = product.masked_fill(padded[:, :, None], neutral)
    return product.amax(1) if reduction == "max" else product.sum(1)


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
) -> Segments:
    """The samples of act; raise ValueError, naming the argument, unless `actgrad_reduce` can take them."""
    validate.option("reduction", reduction, validate.REDUCTIONS)
    validate.option("padding", padding, validate.PADDINGS)
    segments = validate.segments("act", act, lengths, cu_seqlens)
    validate.shape("grad", grad, tuple(act.shape))
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
    visible = group.device.type == "cpu" and not torch.compiler.is_compiling()
    if visible and not ((group >= 0) & (group < totals.shape[0])).all():
        raise ValueError(f"group must lie in 0…{totals.shape[0] - 1}, the rows of totals")
