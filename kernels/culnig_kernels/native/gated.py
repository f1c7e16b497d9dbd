"""Gated activation, and its backward with the scores of gate and up."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from culnig_kernels import allocate, compiled, cpu
from culnig_kernels.reference.gated import ScoreColumns, check_gated_act, check_gated_act_backward

ACTIVATIONS = ("silu", "gelu_tanh", "relu", "relu2")


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
