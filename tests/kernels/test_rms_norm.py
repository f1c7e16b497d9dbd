"""RMS norm, forward and backward, against float64."""

from __future__ import annotations

import pytest
import torch
from checks import assert_as_exact_as_torch
from culnig_kernels import reference
from culnig_kernels.reference.norm import normalise, normalise_backward
from culnig_kernels.rms_norm import WIDEST, rms_norm, rms_norm_backward
from samples import DTYPES, draw, draw_slice

EPS = 1e-6


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (63, 100), (2, 7, 513)])
def test_forward_and_backward(
    shape: tuple[int, ...], dtype: torch.dtype, add: bool, offset: float, device: torch.device
) -> None:
    x = draw_slice(shape, dtype, device)
    residual = draw_slice(shape, dtype, device, 1, before=8) if add else None
    weight = draw(shape[-1:], dtype, device, 2)
    y, z, rstd = rms_norm(x, weight, EPS, offset=offset, residual=residual)
    assert (y.dtype, z.dtype, rstd.dtype) == (dtype, dtype, torch.float32)
    assert torch.equal(z, x if residual is None else x + residual)
    for first, second in zip((y, rstd), rms_norm(z, weight, EPS, offset=offset)[::2], strict=True):
        assert torch.equal(first, second), "what is normalised is the rounded sum, which the backward reads"
    plain_y, plain_rstd = normalise(z, weight, EPS, offset)
    exact_y, exact_rstd = normalise(z.double(), weight.double(), EPS, offset)
    assert_as_exact_as_torch("y", y, exact_y, plain_y)
    if shape[-1] > 1:  # a mean of one square is exact in torch, and one rounding of ours not
        assert_as_exact_as_torch("rstd", rstd, exact_rstd.squeeze(-1), plain_rstd.squeeze(-1))

    dy, extra = draw_slice(shape, dtype, device, 3), (draw(shape, dtype, device, 4) if add else None)
    dz = rms_norm_backward(dy, z, weight, rstd, offset=offset, d_residual=extra)
    assert dz.dtype == dtype
    plain_dz = normalise_backward(dy, z, weight, plain_rstd, offset)
    exact_dz = normalise_backward(dy.double(), z.double(), weight.double(), exact_rstd, offset)
    if extra is not None:
        plain_dz, exact_dz = plain_dz + extra, exact_dz + extra.double()
    if shape[-1] > 1:  # the norm of one number has no gradient but what epsilon leaves
        assert_as_exact_as_torch("dz", dz, exact_dz, plain_dz)


@pytest.mark.parametrize("columns", [4096, WIDEST])
def test_rows_of_real_models(columns: int, device: torch.device) -> None:
    x, weight = draw((3, columns), torch.bfloat16, device), draw((columns,), torch.float32, device, 1)
    y, _, rstd = rms_norm(x, weight, EPS)
    exact, exact_rstd = normalise(x.double(), weight.double(), EPS, 0.0)
    plain, plain_rstd = normalise(x, weight.to(x.dtype), EPS, 0.0)
    assert_as_exact_as_torch("y", y, exact, plain)
    dz = rms_norm_backward(x.flip(0), x, weight, rstd)
    assert_as_exact_as_torch(
        "dz",
        dz,
        normalise_backward(x.flip(0).double(), x.double(), weight.double(), exact_rstd, 0.0),
        normalise_backward(x.flip(0), x, weight.to(x.dtype), plain_rstd, 0.0),
    )


def test_reference_gradient_is_autograd_s() -> None:
    cpu = torch.device("cpu")
    x, residual, weight, dy = (draw(s, torch.float64, cpu, i) for i, s in enumerate([(5, 7), (5, 7), (7,), (5, 7)]))
    x.requires_grad_(True)
    y, z, rstd = reference.rms_norm(x, weight, EPS, offset=1.0, residual=residual)
    (want,) = torch.autograd.grad((y * dy).sum() + (z * dy).sum(), x)
    got = reference.rms_norm_backward(dy, z.detach(), weight, rstd.detach(), offset=1.0, d_residual=dy)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_nan_stays_in_its_row(device: torch.device) -> None:
    x = draw((4, 9), torch.float32, device)
    x[2, 3] = float("nan")
    y, _, rstd = rms_norm(x, torch.ones(9, device=device), EPS)
    assert y.isnan().any(1).tolist() == [False, False, True, False]
    dz = rms_norm_backward(torch.ones_like(x), x, torch.ones(9, device=device), rstd)
    assert dz.isnan().any(1).tolist() == [False, False, True, False]


def test_bad_arguments_are_named(device: torch.device) -> None:
    x, weight = draw((2, 5, 4), torch.float32, device), torch.ones(4, device=device)
    for message, arguments in {
        "weight must be": ((x, weight[:3], EPS), {}),
        "residual must be": ((x, weight, EPS), {"residual": x[:1]}),
        "x must be bfloat16": ((x.double(), weight, EPS), {}),
        "leading dimensions of x": ((x.transpose(0, 1), weight, EPS), {}),
        "columns; the kernel holds": ((x.new_ones(1, WIDEST + 1), x.new_ones(WIDEST + 1), EPS), {}),
    }.items():
        with pytest.raises(ValueError, match=message):
            rms_norm(*arguments[0], **arguments[1])
    rstd = torch.ones(2, 5, device=device)
    for message, options in {
        "dy must be": {"dy": x[:1]},
        "rstd must be": {"rstd": rstd[:1]},
        "d_residual must be": {"d_residual": x[:1]},
    }.items():
        with pytest.raises(ValueError, match=message):
            rms_norm_backward(**{"dy": x, "z": x, "weight": weight, "rstd": rstd, **options})
