"""The operations on a CPU in compiled code: one pass over memory each, in the machine's vector instructions.

What the loops do not take (float16, mixed types, packed samples, the last position, exact GELU) goes to
`culnig_kernels.cpu`; without the extension all does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from culnig_kernels import allocate, compiled, cpu
from culnig_kernels.reference.gated import ScoreColumns, check_gated_act, check_gated_act_backward
from culnig_kernels.reference.norm import check_rms_norm, check_rms_norm_backward
from culnig_kernels.reference.qkv import by_parts, check_qkv_backward
from culnig_kernels.reference.rotary import check_rotary, check_rotary_backward
from culnig_kernels.reference.scores import check_actgrad

ACTIVATIONS = ("silu", "gelu_tanh", "relu", "relu2")
REDUCTIONS = ("max", "sum", "mean", "absmax")


@torch.no_grad()
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
    """`reference.actgrad_reduce` for CPU tensors; a maximum is the same to the last bit.

    Args, returns and errors as there.
    """
    machine = compiled.machine(act, grad)
    if machine is None or cu_seqlens is not None or reduction not in REDUCTIONS:
        return cpu.actgrad_reduce(act, grad, lengths, reduction, padding, cu_seqlens=cu_seqlens, keep=keep)
    segments = check_actgrad(act, grad, lengths, reduction, padding, None, keep)
    act, grad = compiled.dense(act), compiled.dense(grad)
    samples, positions, columns = act.shape
    out = allocate.empty((samples, columns), torch.float32, act.device)
    bounds, marked = compiled.lengths(segments.bounds), None if keep is None else keep.to("cpu").contiguous()
    machine.actgrad_reduce(
        compiled.TYPES[act.dtype],
        reduction,
        padding == "zero",
        compiled.samples(act),
        compiled.samples(grad),
        bounds.data_ptr(),
        compiled.address(marked),
        out.data_ptr(),
        samples,
        positions,
        columns,
    )
    return out


@torch.no_grad()
def gated_act(gate_up: torch.Tensor, activation: str = "silu") -> torch.Tensor:
    """`reference.gated_act` for CPU tensors.

    Args, returns and errors as there.
    """
    machine = compiled.machine(gate_up)
    if machine is None or activation not in ACTIVATIONS:
        return cpu.gated_act(gate_up, activation)
    check_gated_act(gate_up, activation)
    columns = gate_up.shape[-1] // 2
    out = allocate.empty((*gate_up.shape[:-1], columns), gate_up.dtype, gate_up.device)
    flat = compiled.dense(gate_up.reshape(-1, 2 * columns))
    gate, up = flat[:, :columns], flat[:, columns:]
    machine.gated_act(
        compiled.TYPES[flat.dtype],
        activation,
        compiled.rows(gate),
        compiled.rows(up),
        (out.data_ptr(), columns),
        len(flat),
        columns,
    )
    return out


@torch.no_grad()
def gated_act_backward(
    dh: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    lengths: torch.Tensor,
    *,
    activation: str = "silu",
    scores: Sequence[str] = (),
    reduction: str = "max",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`reference.gated_act_backward` for right-padded CPU tensors [S, T, K].

    Args, returns and errors as there.
    """
    machine = compiled.machine(dh, gate, up)
    if machine is None or activation not in ACTIVATIONS:
        return cpu.gated_act_backward(dh, gate, up, lengths, activation=activation, scores=scores, reduction=reduction)
    check_gated_act_backward(dh, gate, up, lengths, activation, scores, reduction, None)
    dh, gate, up = compiled.dense(dh), compiled.dense(gate), compiled.dense(up)
    samples, positions, columns = dh.shape
    out = allocate.empty((samples, positions, 2 * columns), gate.dtype, gate.device)
    found = ScoreColumns(scores, samples, columns, torch.float32, gate.device)
    bounds = compiled.lengths(lengths) if scores else None
    machine.gated_act_backward(
        compiled.TYPES[dh.dtype],
        activation,
        reduction,
        compiled.samples(dh),
        compiled.samples(gate),
        compiled.samples(up),
        compiled.samples(out[..., :columns]),
        compiled.samples(out[..., columns:]),
        compiled.address(bounds),
        compiled.address(found.gate),
        compiled.address(found.up),
        found.whole.stride(0),
        samples,
        positions,
        columns,
    )
    return out, found.filled() if scores else None


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


@torch.no_grad()
def rotary(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    head_dim: int,
    *,
    weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
    queries: int = 0,
) -> torch.Tensor:
    """`reference.rotary` for right-padded CPU tensors [S, T, heads·head_dim].

    Args, returns and errors as there.
    """
    machine = _machine_for_heads(x, cos, head_dim, weight)
    if machine is None:
        return cpu.rotary(x, cos, sin, head_dim, queries=queries, **_norm(weight, eps, offset))
    check_rotary(x, cos, sin, head_dim, weight, queries)
    x, angles = compiled.dense(x), _Angles(cos, sin)
    out = allocate.empty(x.shape, x.dtype, x.device)
    first = queries * head_dim if weight is not None and weight.dim() == 2 else x.shape[-1]
    for row, columns in enumerate((slice(0, first), slice(first, None))):
        part, into = x[..., columns], out[..., columns]
        if part.shape[-1] == 0:
            continue
        own = weight if weight is None or weight.dim() == 1 else weight[row]
        scale = None if own is None else compiled.scale(own, offset)
        machine.rotary(
            compiled.TYPES[x.dtype],
            compiled.samples(part),
            compiled.samples(into),
            *angles.at,
            compiled.address(scale),
            eps,
            *_heads(part, head_dim),
        )
    return out


@torch.no_grad()
def rotary_backward(
    d_out: torch.Tensor,
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    head_dim: int,
    lengths: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
    score: bool = False,
    reduction: str = "max",
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`reference.rotary_backward` for right-padded CPU tensors.

    Args, returns and errors as there.
    """
    machine = _machine_for_heads(x, cos, head_dim, weight, d_out, out)
    if machine is None or (out is not None and out.stride(-1) != 1):
        return cpu.rotary_backward(
            d_out, x, cos, sin, head_dim, lengths, score=score, reduction=reduction, out=out,
            **_norm(weight, eps, offset),
        )  # fmt: skip
    check_rotary_backward(d_out, x, cos, sin, head_dim, lengths, weight, score, reduction, None, out)
    d_out, x, angles = compiled.dense(d_out), compiled.dense(x), _Angles(cos, sin)
    scale = None if weight is None else compiled.scale(weight, offset)
    into = allocate.empty(x.shape, x.dtype, x.device) if out is None else out
    scores = allocate.empty((x.shape[0], x.shape[-1]), torch.float32, x.device) if score else None
    bounds = compiled.lengths(lengths) if score else None
    machine.rotary_backward(
        compiled.TYPES[x.dtype],
        reduction,
        compiled.samples(d_out),
        compiled.samples(x),
        compiled.samples(into),
        *angles.at,
        compiled.address(scale),
        eps,
        compiled.address(bounds),
        compiled.address(scores),
        *_heads(x, head_dim),
    )
    return into, scores


@torch.no_grad()
def qkv_backward(
    qkv: torch.Tensor,
    d_q: torch.Tensor | None,
    d_k: torch.Tensor,
    d_v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    head_dim: int,
    lengths: torch.Tensor | None = None,
    *,
    weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
    score: bool = False,
    reduction: str = "max",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`reference.qkv_backward` for right-padded CPU tensors.

    Args, returns and errors as there.
    """
    check_qkv_backward(qkv, d_q, d_k, d_v, cos, sin, head_dim, lengths, weight, score, reduction, None)
    out = allocate.empty(qkv.shape, qkv.dtype, qkv.device)
    return by_parts(
        rotary_backward, actgrad_reduce, out, qkv, d_q, d_k, d_v, cos, sin, head_dim, lengths,
        weight=weight, score=score, reduction=reduction, eps=eps, offset=offset,
    )  # fmt: skip


class _Angles:
    """Tables of cos and sin in float32, kept alive for the call.

    Attributes:
        at: addresses, elements between two samples' tables (0: one for all), columns.
    """

    def __init__(self, cos: torch.Tensor, sin: torch.Tensor) -> None:
        self._tables = [table.to(torch.float32).contiguous() for table in (cos, sin)]
        own = cos.dim() == 3 and cos.shape[0] > 1
        between = cos.shape[-2] * cos.shape[-1] if own else 0
        self.at = (*(table.data_ptr() for table in self._tables), between, cos.shape[-1])


def _machine_for_heads(
    x: torch.Tensor, cos: torch.Tensor, head_dim: int, weight: torch.Tensor | None, *others: torch.Tensor | None
) -> Any:
    """`compiled.machine`, for samples of heads that the kernels take."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in (cos, weight))
    machine = None if x.dim() != 3 or wide else compiled.machine(x, *others)
    return machine if machine is not None and 0 < head_dim <= compiled.extension().most_head_dim else None


def _norm(weight: torch.Tensor | None, eps: float, offset: float) -> dict[str, Any]:
    return {"weight": weight, "eps": eps, "offset": offset}


def _heads(x: torch.Tensor, head_dim: int) -> tuple[int, int, int, int]:
    samples, positions, columns = x.shape
    return samples, positions, columns // head_dim, head_dim
