"""Sums per group: the bits of a float64 loop over the samples in order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from culnig_kernels import reference
from culnig_kernels.accumulate import accumulate
from samples import DTYPES, draw, draw_slice


def in_order(
    scores: torch.Tensor, weight: torch.Tensor, group: torch.Tensor, totals: torch.Tensor, clamp: bool
) -> np.ndarray:
    """The definition, one rounded product and one rounded addition at a time."""
    out = totals.cpu().numpy().copy()
    for row, w, g in zip(scores.double().cpu().numpy(), weight.cpu().numpy(), group.cpu().numpy(), strict=True):
        product = row * w
        out[g] = out[g] + (np.maximum(product, 0.0) if clamp else product)
    return out


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize(("samples", "columns", "groups"), [(1, 1, 1), (23, 300, 4), (7, 256, 16)])
def test_the_bits_of_a_loop(
    samples: int, columns: int, groups: int, dtype: torch.dtype, clamp: bool, device: torch.device
) -> None:
    scores = draw_slice((samples, columns), dtype, device)
    weight = draw((samples,), torch.float64, device, 1).abs()
    group = torch.randint(groups, (samples,), generator=torch.Generator().manual_seed(2)).to(device)
    totals = draw_slice((groups, columns), torch.float64, device, 3)
    want = in_order(scores, weight, group, totals, clamp)
    by_reference = totals.clone()
    reference.accumulate(scores, weight, group, by_reference, clamp)
    accumulate(scores, weight, group, totals, clamp)
    assert np.array_equal(totals.cpu().numpy(), want)
    assert np.array_equal(by_reference.cpu().numpy(), want)


def test_the_sum_depends_on_the_order() -> None:
    """Else the comparison of bits would prove nothing."""
    scores, weight = draw((23, 300), torch.float32, torch.device("cpu")), torch.rand(23, dtype=torch.float64)
    group, totals = torch.zeros(23, dtype=torch.int64), torch.zeros(1, 300, dtype=torch.float64)
    forward = in_order(scores, weight, group, totals, False)
    assert not np.array_equal(forward, in_order(scores.flip(0), weight.flip(0), group, totals, False))


@pytest.mark.parametrize("clamp", [False, True])
def test_nan_reaches_its_own_total_alone(clamp: bool, device: torch.device) -> None:
    scores = draw((4, 40), torch.float32, device)
    scores[2, 5] = float("nan")
    totals = torch.zeros(3, 40, dtype=torch.float64, device=device)
    accumulate(scores, torch.ones(4, dtype=torch.float64), torch.tensor([0, 1, 1, 0]), totals, clamp)
    assert totals.isnan().nonzero().tolist() == [[1, 5]]
    assert (totals[2] == 0).all()


def test_bad_arguments_are_named(device: torch.device) -> None:
    scores, weight = draw((4, 6), torch.float32, device), torch.ones(4, dtype=torch.float64)
    group, totals = torch.zeros(4, dtype=torch.int64), torch.zeros(2, 6, dtype=torch.float64, device=device)
    for message, arguments in {
        "disagree": (scores, weight, group, totals[:, :5]),
        "weight": (scores, weight[:3], group, totals),
        "group must be int": (scores, weight, group.double(), totals),
        "group must lie": (scores, weight, group + 2, totals),
        "totals must be float64": (scores, weight, group, totals.float()),
        "last dimension of totals": (scores, weight, group, totals.mT.contiguous().mT),
        "scores must be bfloat16": (scores.int(), weight, group, totals),
    }.items():
        with pytest.raises(ValueError, match=message):
            accumulate(*arguments)
