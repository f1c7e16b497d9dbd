"""RMS norm, with the residual add before it, and its activation-only backward; one program a row."""

# Kernels take pointers and numbers that Triton types at launch.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl

from culnig_kernels import allocate, validate
from culnig_kernels.operators import fake_of, operator
from culnig_kernels.reference.norm import check_rms_norm, check_rms_norm_backward
from culnig_kernels.whole import next_power_of_2

WIDEST = 16384
"""Columns that a program can hold: 32 float32 registers a thread at 16 warps for each tile."""


@triton.jit
def rms_norm_kernel(
    x_ptr,  # [rows, H]
    residual_ptr,  # [rows, H], when ADD
    weight_ptr,  # [H]
    y_ptr,  # [rows, H]
    z_ptr,  # [rows, H], when ADD
    rstd_ptr,  # [rows] float32
    columns,  # H
    x_row_stride,
    residual_row_stride,
    eps,
    offset,
    ADD: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_H)
    inside = cols < columns
    z = tl.load(x_ptr + row * x_row_stride + cols, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        residual = tl.load(residual_ptr + row * residual_row_stride + cols, mask=inside, other=0.0)
        rounded = (z + residual.to(tl.float32)).to(z_ptr.dtype.element_ty)
        tl.store(z_ptr + row * columns + cols, rounded, mask=inside)
        z = rounded.to(tl.float32)  # what the backward will read
    rstd = 1.0 / tl.sqrt_rn(tl.sum(z * z, 0) / columns + eps)
    weight = offset + tl.load(weight_ptr + cols, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * columns + cols, (z * rstd * weight).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(rstd_ptr + row, rstd)


@triton.jit
def rms_norm_backward_kernel(
    dy_ptr,  # [rows, H]
    z_ptr,  # [rows, H]
    weight_ptr,  # [H]
    rstd_ptr,  # [rows] float32
    d_residual_ptr,  # [rows, H], when ADD
    dz_ptr,  # [rows, H]
    columns,  # H
    dy_row_stride,
    z_row_stride,
    d_residual_row_stride,
    offset,
    ADD: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_H)
    inside = cols < columns
    rstd = tl.load(rstd_ptr + row)
    dy = tl.load(dy_ptr + row * dy_row_stride + cols, mask=inside, other=0.0).to(tl.float32)
    unit = tl.load(z_ptr + row * z_row_stride + cols, mask=inside, other=0.0).to(tl.float32) * rstd
    direction = dy * (offset + tl.load(weight_ptr + cols, mask=inside, other=0.0).to(tl.float32))
    dz = rstd * (direction - unit * (tl.sum(direction * unit, 0) / columns))
    if ADD:
        at = d_residual_ptr + row * d_residual_row_stride + cols
        dz += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dz_ptr + row * columns + cols, dz.to(dz_ptr.dtype.element_ty), mask=inside)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(offset + weight) · z / rms(z) where z is x, or x + residual.

    Args:
        x: [..., H] bf16, fp16 or fp32; leading dimensions of one row stride, last dimension contiguous.
        weight: [H]; Llama's norm has offset 0, Gemma's 1.
        eps: added to the mean square.
        offset: added to the weight.
        residual: of x's shape; the sum is rounded to x's dtype before it is normalised, as the model's own add does.

    Returns:
        the norm, contiguous [..., H] of x's dtype; z [..., H] of x's dtype (x itself without a residual); 1 / rms,
        float32 [...].

    Raises:
        ValueError: shapes, dtypes, devices or strides do not fit, or H is above `WIDEST`.
    """
    check_rms_norm(x, weight, residual)
    validate.launchable(x=x, weight=weight, residual=residual)
    _check_width("x", x)
    flat = None if residual is None else validate.rows("residual", residual)
    y, z, rstd = rms_norm_op(validate.rows("x", x), weight, eps, offset, flat)
    return y.view(x.shape), x if residual is None else z.view(x.shape), rstd.view(x.shape[:-1])


def rms_norm_backward(
    dy: torch.Tensor,
    z: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    *,
    offset: float = 0.0,
    d_residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gradient of the norm with respect to z, which is that of x and of the residual alike; none for the
    weight.

    Args:
        dy: [..., H] gradient with respect to the norm; bf16, fp16 or fp32, leading dimensions of one row stride.
        z: [..., H] what was normalised, as `rms_norm` returned it.
        weight: [H].
        rstd: float32 [...] as `rms_norm` returned it.
        offset: as given to `rms_norm`.
        d_residual: [..., H] the gradient that reaches z by another way, added to the result.

    Returns:
        contiguous [..., H] of z's dtype, rounded once.

    Raises:
        ValueError: shapes, dtypes, devices or strides do not fit, or H is above `WIDEST`.
    """
    check_rms_norm_backward(dy, z, weight, rstd, d_residual)
    validate.floats(rstd=rstd)
    validate.launchable(dy=dy, z=z, weight=weight, d_residual=d_residual)
    _check_width("z", z)
    flat = None if d_residual is None else validate.rows("d_residual", d_residual)
    dz = rms_norm_backward_op(validate.rows("dy", dy), validate.rows("z", z), weight, rstd.reshape(-1), offset, flat)
    return dz.view(z.shape)


def _check_width(name: str, tensor: torch.Tensor) -> None:
    if tensor.shape[-1] > WIDEST:
        raise ValueError(f"{name} has {tensor.shape[-1]} columns; the kernel holds up to {WIDEST}")


def warps_for(block: int) -> int:
    """Eight 16-bit elements a thread where the row is long enough, 32 at the widest."""
    return min(16, max(1, block // 512))


@operator()
def rms_norm_op(
    x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, residual: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The launch, on arguments that `rms_norm` has checked; z comes back empty without a residual."""
    rows, columns = x.shape
    y = allocate.empty((rows, columns), x.dtype, x.device)
    z = allocate.empty((0 if residual is None else rows, columns), x.dtype, x.device)
    rstd = allocate.empty((rows,), torch.float32, x.device)
    if x.numel() == 0:
        return y, z, rstd
    block = next_power_of_2(columns)
    with torch.cuda.device_of(x):
        rms_norm_kernel[(rows,)](
            x_ptr=x,
            residual_ptr=residual,
            weight_ptr=weight.contiguous(),
            y_ptr=y,
            z_ptr=z,
            rstd_ptr=rstd,
            columns=columns,
            x_row_stride=x.stride(0),
            residual_row_stride=0 if residual is None else residual.stride(0),
            eps=eps,
            offset=offset,
            ADD=residual is not None,
            BLOCK_H=block,
            num_warps=warps_for(block),
        )
    return y, z, rstd


@fake_of(rms_norm_op)
def _(
    x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, residual: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    z = x.new_empty((0 if residual is None else x.shape[0], x.shape[1]))
    return x.new_empty(x.shape), z, x.new_empty(x.shape[:1], dtype=torch.float32)


@operator()
def rms_norm_backward_op(
    dy: torch.Tensor,
    z: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    offset: float,
    d_residual: torch.Tensor | None,
) -> torch.Tensor:
    """The launch, on arguments that `rms_norm_backward` has checked."""
    rows, columns = z.shape
    dz = allocate.empty((rows, columns), z.dtype, z.device)
    if z.numel() == 0:
        return dz
    block = next_power_of_2(columns)
    with torch.cuda.device_of(z):
        rms_norm_backward_kernel[(rows,)](
            dy_ptr=dy,
            z_ptr=z,
            weight_ptr=weight.contiguous(),
            rstd_ptr=rstd.contiguous(),
            d_residual_ptr=d_residual,
            dz_ptr=dz,
            columns=columns,
            dy_row_stride=dy.stride(0),
            z_row_stride=z.stride(0),
            d_residual_row_stride=0 if d_residual is None else d_residual.stride(0),
            offset=offset,
            ADD=d_residual is not None,
            BLOCK_H=block,
            num_warps=warps_for(block),
        )
    return dz


@fake_of(rms_norm_backward_op)
def _(
    dy: torch.Tensor,
    z: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    offset: float,
    d_residual: torch.Tensor | None,
) -> torch.Tensor:
    return z.new_empty(z.shape)
