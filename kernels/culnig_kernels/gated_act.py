"""Gated activation of an MLP, act(gate)·up, from one fused tensor."""

# Kernels take pointers and numbers that Triton types at launch.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl

from culnig_kernels import allocate, validate
from culnig_kernels.operators import fake_of, operator
from culnig_kernels.reference.gated import check_gated_act
from culnig_kernels.whole import cdiv

BLOCK_T = 4
BLOCK_K = 512
WARPS = 4


@triton.jit
def sigmoid(x):
    """(s, s·(1 − s)) for s the sigmoid of x, by one exponential that cannot overflow; 1 − s would lose digits."""
    e = tl.exp(-tl.abs(x))
    near = 1.0 / (1.0 + e)
    far = e * near
    return tl.where(x < 0.0, far, near), near * far


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """(act(x), act'(x)) in float32; NaN passes through both."""
    if ACTIVATION == "silu":
        s, bend = sigmoid(x)
        return x * s, s + x * bend
    elif ACTIVATION == "gelu_tanh":
        # ½(1 + tanh u) is the sigmoid of 2u, which loses nothing where tanh nears -1.
        s, bend = sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        return x * s, s + x * bend * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    elif ACTIVATION == "gelu":
        half = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        return x * half, half + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif ACTIVATION == "relu":
        return tl.where(x <= 0.0, 0.0, x), tl.where(x <= 0.0, 0.0, 1.0)
    else:
        r = tl.where(x <= 0.0, 0.0, x)
        return r * r, 2.0 * r


@triton.jit(do_not_specialize=["rows"])
def gated_act_kernel(
    gate_up_ptr,  # [rows, 2K]
    out_ptr,  # [rows, K]
    rows,
    columns,  # K
    row_stride,
    ACTIVATION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    blocks = tl.cdiv(columns, BLOCK_K)
    at = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    cols = (tl.program_id(0) % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask = (at < rows)[:, None] & (cols < columns)[None, :]
    gate_ptr = gate_up_ptr + at[:, None] * row_stride + cols[None, :]
    gate = tl.load(gate_ptr, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    value, _ = activate(gate, ACTIVATION)
    out = (value * up).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + at[:, None] * columns + cols[None, :], out, mask=mask)


def gated_act(gate_up: torch.Tensor, activation: str = "silu") -> torch.Tensor:
    """act(gate) · up.

    Args:
        gate_up: [..., 2K] gate columns, then up columns; bf16, fp16 or fp32; leading dimensions of one row stride,
            last dimension contiguous.
        activation: one of `activations.ACTIVATIONS`.

    Returns:
        contiguous [..., K] of gate_up's dtype, computed in float32 and rounded once.

    Raises:
        ValueError: an odd number of columns, other strides or dtypes, or an unknown activation.
    """
    check_gated_act(gate_up, activation)
    validate.launchable(gate_up=gate_up)
    out = gated_act_op(validate.rows("gate_up", gate_up), activation)
    return out.view(*gate_up.shape[:-1], gate_up.shape[-1] // 2)


@operator()
def gated_act_op(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """The launch, on arguments that `gated_act` has checked; gate_up [rows, 2K]."""
    rows, columns = gate_up.shape[0], gate_up.shape[1] // 2
    out = allocate.empty((rows, columns), gate_up.dtype, gate_up.device)
    if out.numel() == 0:
        return out
    with torch.cuda.device_of(gate_up):
        gated_act_kernel[(cdiv(rows, BLOCK_T) * cdiv(columns, BLOCK_K),)](
            gate_up_ptr=gate_up,
            out_ptr=out,
            rows=rows,
            columns=columns,
            row_stride=gate_up.stride(0),
            ACTIVATION=activation,
            BLOCK_T=BLOCK_T,
            BLOCK_K=BLOCK_K,
            num_warps=WARPS,
        )
    return out


@fake_of(gated_act_op)
def _(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    return gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))
