"""The operations on a CPU in compiled code: one pass over memory each, in the machine's vector instructions.

`culnig_kernels._cpu` (csrc/cpu/) holds the loops; here tensors become addresses, and whatever the loops do not take
(float16, mixed types, packed samples, the last position, exact GELU) goes to `culnig_kernels.cpu`. Without the
extension all does. torch comes first: the extension uses the OpenMP threads that torch has loaded.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Sequence
from typing import Any

import torch

from culnig_kernels import allocate, cpu
from culnig_kernels.reference.gated import check_gated_act, check_gated_act_backward
from culnig_kernels.reference.norm import check_rms_norm, check_rms_norm_backward
from culnig_kernels.reference.rotary import check_rotary, check_rotary_backward
from culnig_kernels.reference.scores import check_actgrad

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
ACTIVATIONS = ("silu", "gelu_tanh", "relu", "relu2")
REDUCTIONS = ("max", "sum", "mean", "absmax")

LEVEL_VARIABLE = "CULNIG_CPU_LEVEL"
"""Environment: `baseline`, `avx2` or `avx512` in place of the best that the machine has; `none` for plain torch."""

NOWHERE = (0, 0)


def level() -> str | None:
    """The set of vector instructions in use; None where the compiled kernels are not there or not wanted.

    Raises:
        ValueError: the environment names a level that this machine does not have.
    """
    wanted = os.environ.get(LEVEL_VARIABLE)
    if wanted == "none" or _extension() is None:
        return None
    known: list[str] = _extension().levels()
    if wanted is not None and wanted not in known:
        raise ValueError(f"{LEVEL_VARIABLE} must be none, {' or '.join(known)} on this machine, not {wanted!r}")
    return wanted or known[-1]


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
    machine = _machine(act, grad)
    if machine is None or cu_seqlens is not None or reduction not in REDUCTIONS:
        return cpu.actgrad_reduce(act, grad, lengths, reduction, padding, cu_seqlens=cu_seqlens, keep=keep)
    segments = check_actgrad(act, grad, lengths, reduction, padding, None, keep)
    act, grad = _dense(act), _dense(grad)
    samples, positions, columns = act.shape
    out = allocate.empty((samples, columns), torch.float32, act.device)
    bounds, marked = _lengths(segments.bounds), None if keep is None else keep.to("cpu").contiguous()
    machine.actgrad_reduce(
        TYPES[act.dtype],
        reduction,
        padding == "zero",
        _samples(act),
        _samples(grad),
        bounds.data_ptr(),
        _address(marked),
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
    machine = _machine(gate_up)
    if machine is None or activation not in ACTIVATIONS:
        return cpu.gated_act(gate_up, activation)
    check_gated_act(gate_up, activation)
    columns = gate_up.shape[-1] // 2
    out = allocate.empty((*gate_up.shape[:-1], columns), gate_up.dtype, gate_up.device)
    flat = _dense(gate_up.reshape(-1, 2 * columns))
    gate, up = flat[:, :columns], flat[:, columns:]
    machine.gated_act(
        TYPES[flat.dtype], activation, _rows(gate), _rows(up), (out.data_ptr(), columns), len(flat), columns
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
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """`reference.gated_act_backward` for right-padded CPU tensors [S, T, K].

    Args, returns and errors as there.
    """
    machine = _machine(dh, gate, up)
    if machine is None or activation not in ACTIVATIONS:
        return cpu.gated_act_backward(dh, gate, up, lengths, activation=activation, scores=scores, reduction=reduction)
    check_gated_act_backward(dh, gate, up, lengths, activation, scores, reduction, None)
    dh, gate, up = _dense(dh), _dense(gate), _dense(up)
    samples, positions, columns = dh.shape
    out = allocate.empty((samples, positions, 2 * columns), gate.dtype, gate.device)
    wanted = {"gate": "gate" in scores, "up": "up" in scores or "act" in scores}
    found = {
        name: allocate.empty((samples, columns), torch.float32, dh.device) for name, want in wanted.items() if want
    }
    bounds = _lengths(lengths) if found else None
    machine.gated_act_backward(
        TYPES[dh.dtype],
        activation,
        reduction,
        _samples(dh),
        _samples(gate),
        _samples(up),
        _samples(out[..., :columns]),
        _samples(out[..., columns:]),
        _address(bounds),
        _address(found.get("gate")),
        _address(found.get("up")),
        samples,
        positions,
        columns,
    )
    up_scores = found.get("up")
    return (
        out,
        found.get("gate"),
        up_scores if "up" in scores else None,
        up_scores if "act" in scores else None,
    )


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
    machine = _machine(x, residual)
    if machine is None or weight.dtype == torch.float64:
        return cpu.rms_norm(x, weight, eps, offset=offset, residual=residual)
    check_rms_norm(x, weight, residual)
    columns = x.shape[-1]
    flat = _dense(x.reshape(-1, columns))
    y = allocate.empty(x.shape, x.dtype, x.device)
    z = x if residual is None else allocate.empty(x.shape, x.dtype, x.device)
    rstd = allocate.empty(x.shape[:-1], torch.float32, x.device)
    scale = _scale(weight, offset)
    added = None if residual is None else _dense(residual.reshape(-1, columns))
    machine.rms_norm(
        TYPES[x.dtype],
        _rows(flat),
        NOWHERE if added is None else _rows(added),
        (y.data_ptr(), columns),
        NOWHERE if added is None else (z.data_ptr(), columns),
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
    machine = _machine(dy, z, d_residual)
    if machine is None or weight.dtype == torch.float64 or rstd.dtype != torch.float32:
        return cpu.rms_norm_backward(dy, z, weight, rstd, offset=offset, d_residual=d_residual)
    check_rms_norm_backward(dy, z, weight, rstd, d_residual)
    columns = z.shape[-1]
    out = allocate.empty(z.shape, z.dtype, z.device)
    flat_dy, flat_z = (_dense(tensor.reshape(-1, columns)) for tensor in (dy, z))
    extra = None if d_residual is None else _dense(d_residual.reshape(-1, columns))
    own, scale = rstd.contiguous(), _scale(weight, offset)
    machine.rms_norm_backward(
        TYPES[z.dtype],
        _rows(flat_dy),
        _rows(flat_z),
        NOWHERE if extra is None else _rows(extra),
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
) -> torch.Tensor:
    """`reference.rotary` for right-padded CPU tensors [S, T, heads·head_dim].

    Args, returns and errors as there.
    """
    machine = _machine_for_heads(x, cos, head_dim, weight)
    if machine is None:
        return cpu.rotary(x, cos, sin, head_dim, **_norm(weight, eps, offset))
    check_rotary(x, cos, sin, head_dim, weight)
    x, angles = _dense(x), _Angles(cos, sin)
    scale = None if weight is None else _scale(weight, offset)
    out = allocate.empty(x.shape, x.dtype, x.device)
    machine.rotary(TYPES[x.dtype], _samples(x), _samples(out), *angles.at, _address(scale), eps, *_heads(x, head_dim))
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
    d_out, x, angles = _dense(d_out), _dense(x), _Angles(cos, sin)
    scale = None if weight is None else _scale(weight, offset)
    into = allocate.empty(x.shape, x.dtype, x.device) if out is None else out
    scores = allocate.empty((x.shape[0], x.shape[-1]), torch.float32, x.device) if score else None
    bounds = _lengths(lengths) if score else None
    machine.rotary_backward(
        TYPES[x.dtype],
        reduction,
        _samples(d_out),
        _samples(x),
        _samples(into),
        *angles.at,
        _address(scale),
        eps,
        _address(bounds),
        _address(scores),
        *_heads(x, head_dim),
    )
    return into, scores


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


@functools.cache
def _extension() -> Any:
    try:
        return importlib.import_module("culnig_kernels._cpu")
    except ImportError:  # not built, or without the OpenMP library that it was built with
        return None


def _machine(*tensors: torch.Tensor | None) -> Any:
    """What runs the kernels for tensors of one type; None when plain torch must."""
    given = [tensor for tensor in tensors if tensor is not None]
    if given[0].dtype not in TYPES or any(tensor.dtype != given[0].dtype for tensor in given):
        return None
    if any(tensor.numel() == 0 or tensor.dim() < 1 for tensor in given):
        return None
    chosen = level()
    return None if chosen is None else _extension().Machine(chosen, torch.get_num_threads())


def _machine_for_heads(
    x: torch.Tensor, cos: torch.Tensor, head_dim: int, weight: torch.Tensor | None, *others: torch.Tensor | None
) -> Any:
    """`_machine`, for samples of heads that the kernels take."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in (cos, weight))
    machine = None if x.dim() != 3 or wide else _machine(x, *others)
    return machine if machine is not None and 0 < head_dim <= _extension().most_head_dim else None


def _norm(weight: torch.Tensor | None, eps: float, offset: float) -> dict[str, Any]:
    return {"weight": weight, "eps": eps, "offset": offset}


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """The kernels read columns that lie next to each other."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _scale(weight: torch.Tensor, offset: float) -> torch.Tensor:
    return (offset + weight.to(torch.float32)).contiguous()


def _lengths(lengths: torch.Tensor) -> torch.Tensor:
    return lengths.to("cpu", torch.int64).contiguous()


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _rows(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.stride(0)


def _samples(tensor: torch.Tensor) -> tuple[int, int, int]:
    return tensor.data_ptr(), tensor.stride(0), tensor.stride(1)


def _heads(x: torch.Tensor, head_dim: int) -> tuple[int, int, int, int]:
    samples, positions, columns = x.shape
    return samples, positions, columns // head_dim, head_dim
