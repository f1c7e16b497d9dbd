"""Weighted scores added to their groups' totals in float64, in the order of the samples."""

# Kernels take pointers and numbers that Triton types at launch.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl

from culnig_kernels import validate
from culnig_kernels.operators import fake_of, operator
from culnig_kernels.reference.scores import check_accumulate
from culnig_kernels.whole import cdiv

BLOCK_K = 256
WARPS = 4


@triton.jit
def sample_of(weight_ptr, group_ptr, sample, samples, group):
    """Whether a sample is of this group, and its weight."""
    there = sample < samples
    mine = there & (tl.load(group_ptr + sample, mask=there, other=-1) == group)
    return mine, tl.load(weight_ptr + sample, mask=there, other=0.0)


@triton.jit
def added(total, mine, score, weight, CLAMP: tl.constexpr):
    """The total [BLOCK_K] with a sample's weighted scores, where they are of this group."""
    weighted = score.to(tl.float64) * weight
    if CLAMP:
        weighted = tl.where(weighted < 0.0, 0.0, weighted)  # NaN stays
    return tl.where(mine, total + weighted, total)


@triton.jit(do_not_specialize=["samples"])
def accumulate_kernel(
    scores_ptr,  # [S, K]
    weight_ptr,  # [S] float64
    group_ptr,  # [S]
    totals_ptr,  # [G, K] float64
    samples,  # S
    columns,  # K
    scores_row_stride,
    totals_row_stride,
    CLAMP: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # One program owns a group's block of columns, so a sum is formed by one thread in one order, without
    # atomics; of the scores it reads only its own group's rows.
    blocks = tl.cdiv(columns, BLOCK_K)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    cols = (tl.program_id(0) % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = cols < columns
    totals_ptr += group * totals_row_stride + cols
    total = tl.load(totals_ptr, mask=inside, other=0.0)
    # Four samples are loaded before they are added, and the next four's groups and weights with them: a program waits
    # for memory once in four samples. Which scores are read depends on the group, so that would be another wait.
    mine_0, weight_0 = sample_of(weight_ptr, group_ptr, 0, samples, group)
    mine_1, weight_1 = sample_of(weight_ptr, group_ptr, 1, samples, group)
    mine_2, weight_2 = sample_of(weight_ptr, group_ptr, 2, samples, group)
    mine_3, weight_3 = sample_of(weight_ptr, group_ptr, 3, samples, group)
    scores_ptr += cols
    for first in range(0, samples, 4):
        score_0 = tl.load(scores_ptr, mask=inside & mine_0, other=0.0)
        score_1 = tl.load(scores_ptr + scores_row_stride, mask=inside & mine_1, other=0.0)
        score_2 = tl.load(scores_ptr + 2 * scores_row_stride, mask=inside & mine_2, other=0.0)
        score_3 = tl.load(scores_ptr + 3 * scores_row_stride, mask=inside & mine_3, other=0.0)
        next_0, further_0 = sample_of(weight_ptr, group_ptr, first + 4, samples, group)
        next_1, further_1 = sample_of(weight_ptr, group_ptr, first + 5, samples, group)
        next_2, further_2 = sample_of(weight_ptr, group_ptr, first + 6, samples, group)
        next_3, further_3 = sample_of(weight_ptr, group_ptr, first + 7, samples, group)
        total = added(total, mine_0, score_0, weight_0, CLAMP)
        total = added(total, mine_1, score_1, weight_1, CLAMP)
        total = added(total, mine_2, score_2, weight_2, CLAMP)
        total = added(total, mine_3, score_3, weight_3, CLAMP)
        mine_0, mine_1, mine_2, mine_3 = next_0, next_1, next_2, next_3
        weight_0, weight_1, weight_2, weight_3 = further_0, further_1, further_2, further_3
        scores_ptr += 4 * scores_row_stride
    tl.store(totals_ptr, total, mask=inside)


def accumulate(
    scores: torch.Tensor,
    weight: torch.Tensor,
    group: torch.Tensor,
    totals: torch.Tensor,
    clamp_below_zero: bool = False,
) -> None:
    """totals[group[s]] += weight[s] · scores[s] for every sample s, in place.

    Each sum is formed in the order of the samples, product and addition rounded apart: the same bits on every run
    and as the reference.

    Args:
        scores: [S, K] bf16, fp16, fp32 or float64, last dimension contiguous.
        weight: float64 [S].
        group: int32 or int64 [S], each in 0…G−1.
        totals: float64 [G, K], changed in place, last dimension contiguous.
        clamp_below_zero: replace a negative weighted score by 0 first (control sets; CULNIG, section 3).

    Raises:
        ValueError: shapes, dtypes or devices disagree, or a group on the CPU is out of range; one on the device is
            not looked at, and its sample is added nowhere.
    """
    check_accumulate(scores, weight, group, totals)
    validate.launchable((*validate.FLOATS, torch.float64), scores=scores, totals=totals)
    weight = weight.to(scores.device, torch.float64, non_blocking=True)
    accumulate_op(scores, weight, group.to(scores.device, non_blocking=True), totals, clamp_below_zero)


@operator(mutates=("totals",))
def accumulate_op(
    scores: torch.Tensor, weight: torch.Tensor, group: torch.Tensor, totals: torch.Tensor, clamp: bool
) -> None:
    """The launch, on arguments that `accumulate` has checked."""
    samples, columns = scores.shape
    if scores.numel() == 0:
        return
    with torch.cuda.device_of(scores):
        accumulate_kernel[(totals.shape[0] * cdiv(columns, BLOCK_K),)](
            scores_ptr=scores,
            weight_ptr=weight.contiguous(),
            group_ptr=group.contiguous(),
            totals_ptr=totals,
            samples=samples,
            columns=columns,
            scores_row_stride=scores.stride(0),
            totals_row_stride=totals.stride(0),
            CLAMP=clamp,
            BLOCK_K=BLOCK_K,
            num_warps=WARPS,
            enable_fp_fusion=False,  # a fused multiply-add would round once where the definition rounds twice
        )


@fake_of(accumulate_op)
def _(scores: torch.Tensor, weight: torch.Tensor, group: torch.Tensor, totals: torch.Tensor, clamp: bool) -> None:
    return None
