"""The cache-sized blocks of the CPU path against the plain formulation."""

from __future__ import annotations

import pytest
import torch
from checks import assert_as_exact_as_torch
from culnig_kernels import cpu, reference
from samples import DTYPES, draw_slice

CPU = torch.device("cpu")
LENGTHS = torch.tensor([1, 63, 20])


@pytest.mark.parametrize("block", [1, 64, 700, 2**18])
@pytest.mark.parametrize("padding", ["exclude", "zero"])
@pytest.mark.parametrize("grad_dtype", DTYPES)
@pytest.mark.parametrize("act_dtype", DTYPES)
def test_the_maximum_is_the_same_to_the_bit(
    act_dtype: torch.dtype, grad_dtype: torch.dtype, padding: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_BLOCK", block)
    act, grad = draw_slice((3, 63, 70), act_dtype, CPU), draw_slice((3, 63, 70), grad_dtype, CPU, 1, before=8)
    expected = reference.actgrad_reduce(act, grad, LENGTHS, padding=padding)
    got = cpu.actgrad_reduce(act, grad, LENGTHS, padding=padding)
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_the_sum_is_as_exact_as_plain_torch(dtype: torch.dtype) -> None:
    act, grad = draw_slice((3, 63, 70), dtype, CPU), draw_slice((3, 63, 70), dtype, CPU, 1)
    exact = torch.stack(
        [(a.double() * g.double())[:n].sum(0) for a, g, n in zip(act, grad, LENGTHS.tolist(), strict=True)]
    )
    plain = reference.actgrad_reduce(act, grad, LENGTHS, "sum")
    assert_as_exact_as_torch("sum", cpu.actgrad_reduce(act, grad, LENGTHS, "sum"), exact, plain)


def test_padding_is_never_read_and_nan_is_never_dropped() -> None:
    act, grad = torch.ones(2, 3, 4), torch.full((2, 3, 4), -1.0)
    act[1, 2] = torch.nan
    act[0, 1, 2] = torch.nan
    got = cpu.actgrad_reduce(act, grad, torch.tensor([3, 2]), padding="zero")
    assert got[0].isnan().tolist() == [False, False, True, False]
    assert got[1].tolist() == [0, 0, 0, 0]
    assert cpu.actgrad_reduce(act, grad, torch.tensor([3, 2]))[1].tolist() == [-1, -1, -1, -1]
