"""What every kernel computes, in plain torch: the oracle of its tests and the path of machines without Triton."""

from __future__ import annotations

from typing import Literal

import torch

Reduction = Literal["max", "sum"]
Padding = Literal["exclude", "zero"]


def actgrad_reduce(
    act: torch.Tensor,
    grad: torch.Tensor,
    lengths: torch.Tensor,
    reduction: Reduction = "max",
    padding: Padding = "exclude",
) -> torch.Tensor:
    """Activation × gradient of each sample, reduced over its token positions.

    Args:
        act: [S, T, K] activations, any float dtype, any strides.
        grad: [S, T, K] gradients of the objective with respect to them.
        lengths: int64 [S] real tokens of each sample, in 1…T; the rest of a row is padding.
        reduction: `max` (CULNIG, section 2) or `sum` (first-order effect of zeroing the neuron everywhere).
        padding: `exclude` leaves padded positions out; `zero` counts each as a product of 0.

    Returns:
        float32 [S, K] (float64 for float64 inputs). Products are formed in that type whatever the inputs hold.
        NaN in gives NaN out.

    Raises:
        ValueError: shapes disagree, or an option is unknown.
    """
    check_actgrad(act, grad, lengths, reduction, padding)
    work = torch.float64 if act.dtype == torch.float64 else torch.float32
    product = act.to(work) * grad.to(work)
    neutral = 0.0 if padding == "zero" or reduction == "sum" else -torch.inf
    padded = torch.arange(act.shape[1], device=act.device) >= lengths[:, None]
    product.masked_fill_(padded[:, :, None], neutral)
    return product.amax(1) if reduction == "max" else product.sum(1)


def accumulate(
    scores: torch.Tensor,
    weight: torch.Tensor,
    group: torch.Tensor,
    totals: torch.Tensor,
    clamp_below_zero: bool = False,
) -> None:
    """totals[group[s]] += weight[s] · scores[s] for every sample s, in place.

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
    # A product with the membership matrix sums in a fixed order, which atomic additions on a GPU do not.
    member = torch.zeros(totals.shape[0], scores.shape[0], dtype=torch.float64, device=totals.device)
    member[group, torch.arange(scores.shape[0], device=totals.device)] = 1.0
    totals.addmm_(member, weighted)


def check_actgrad(
    act: torch.Tensor, grad: torch.Tensor, lengths: torch.Tensor, reduction: str, padding: str
) -> None:
    """Raise ValueError, naming the argument, unless the arguments of `actgrad_reduce` fit together."""
    if act.dim() != 3 or act.shape != grad.shape:
        raise ValueError(f"act and grad must be [S, T, K] alike, not {list(act.shape)} and {list(grad.shape)}")
    if lengths.shape != act.shape[:1] or lengths.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"lengths must be integers [{act.shape[0]}], not {lengths.dtype} {list(lengths.shape)}")
    if reduction not in ("max", "sum"):
        raise ValueError(f"reduction must be 'max' or 'sum', not {reduction!r}")
    if padding not in ("exclude", "zero"):
        raise ValueError(f"padding must be 'exclude' or 'zero', not {padding!r}")


def check_accumulate(
    scores: torch.Tensor, weight: torch.Tensor, group: torch.Tensor, totals: torch.Tensor
) -> None:
    """Raise ValueError, naming the argument, unless the arguments of `accumulate` fit together."""
    samples = scores.shape[0]
    if scores.dim() != 2 or totals.dim() != 2 or totals.shape[1] != scores.shape[1]:
        raise ValueError(f"scores [S, K] and totals [G, K] disagree: {list(scores.shape)}, {list(totals.shape)}")
    if weight.shape != (samples,) or group.shape != (samples,):
        raise ValueError(f"weight and group must be [{samples}], not {list(weight.shape)}, {list(group.shape)}")
    if totals.dtype != torch.float64:
        raise ValueError(f"totals must be float64, not {totals.dtype}")
