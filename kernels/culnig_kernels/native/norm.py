"""RMS norm and its activation-only backward."""

from __future__ import annotations

import torch

from culnig_kernels import allocate, compiled, cpu
from culnig_kernels.reference.norm import check_rms_norm, check_rms_norm_backward


@torch.no_grad()
def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`reference.rms_norm` for CPU tensors.

    Args, returns and errors as there.
    """
    machine = compiled.machine(x, residual)
    if machine is None or weight.dtype == torch.float64:
        return cpu.rms_norm(x, weight, eps, offset=offset, residual=residual)
    check_rms_norm(x, weight, residual)
    columns = x.shape[-1]
    flat = compiled.dense(x.reshape(-1, columns))
    y = allocate.empty(x.shape, x.dtype, x.device)
    z = x if residual is None else allocate.empty(x.shape, x.dtype, x.device)
    rstd = allocate.empty(x.shape[:-1], torch.float32, x.device)
    scale = compiled.scale(weight, offset)
    added = None if residual is None else compiled.dense(residual.reshape(-1, columns))
    machine.rms_norm(
        compiled.TYPES[x.dtype],
        compiled.rows(flat),
        compiled.NOWHERE if added is None else compiled.rows(added),
        (y.data_ptr(), columns),
        compiled.NOWHERE if added is None else (z.data_ptr(), columns),
        rstd.data_ptr(),
        scale.data_ptr(),
        eps,
        len(flat),
        columns,
    )
    return y, z, rstd


@torch.no_grad()
def rms_norm_backward(
    dy: torch.Tensor,
    z: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    *,
    offset: float = 0.0,
    d_residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """`reference.rms_norm_backward` for CPU tensors.

    Args, returns and errors as there.
    """
    machine = compiled.machine(dy, z, d_residual)
    if machine is None or weight.dtype == torch.float64 or rstd.dtype != torch.float32:
        return cpu.rms_norm_backward(dy, z, weight, rstd, offset=offset, d_residual=d_residual)
    check_rms_norm_backward(dy, z, weight, rstd, d_residual)
    columns = z.shape[-1]
    out = allocate.empty(z.shape, z.dtype, z.device)
    flat_dy, flat_z = (compiled.dense(tensor.reshape(-1, columns)) for tensor in (dy, z))
    extra = None if d_residual is None else compiled.dense(d_residual.reshape(-1, columns))
    own, scale = rstd.contiguous(), compiled.scale(weight, offset)
    machine.rms_norm_backward(
        compiled.TYPES[z.dtype],
        compiled.rows(flat_dy),
        compiled.rows(flat_z),
        compiled.NOWHERE if extra is None else compiled.rows(extra),
        (out.data_ptr(), columns),
        own.data_ptr(),
        scale.data_ptr(),
        len(flat_z),
        columns,
    )
    return out
