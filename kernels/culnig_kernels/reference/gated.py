"""Gated activation, act(gate)·up, and its backward with the scores of gate, up and their product."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from culnig_kernels import allocate, validate
from culnig_kernels.activations import ACTIVATIONS
from culnig_kernels.reference.precision import work_dtype
from culnig_kernels.reference.scores import reduce_positions
from culnig_kernels.validate import Segments

SCORES = ("gate", "up", "act")


def gated_act(gate_up: torch.Tensor, activation: str = "silu") -> torch.Tensor:
    """act(gate) · up.

    Args:
        gate_up: [..., 2K] gate columns, then up columns; bf16, fp16 or fp32, leading dimensions of one row stride.
        activation: one of `activations.ACTIVATIONS`.

    Returns:
        [..., K] of gate_up's dtype, computed in float32 and rounded once.

    Raises:
        ValueError: an odd number of columns, or an unknown activation.
    """
    check_gated_act(gate_up, activation)
    gate, up = gate_up.to(work_dtype(gate_up)).chunk(2, dim=-1)
    return (activate(gate, activation) * up).to(gate_up.dtype)


def gated_act_backward(
    dh: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    lengths: torch.Tensor | None = None,
    *,
    activation: str = "silu",
    scores: Sequence[str] = (),
    reduction: str = "max",
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of act(gate)·up and, for each sample, activation × gradient reduced over its positions.

    The score of the product h = act(gate)·up is h·dh = up·(act(gate)·dh), which is the score of up.

    Args:
        dh: [S, T, K] or packed [T, K] gradient with respect to act(gate)·up.
        gate: of dh's shape, the gate pre-activation; never overwritten.
        up: of dh's shape; never overwritten.
        lengths: int32 or int64 [S] real tokens of each padded sample; needed for scores only.
        activation: one of `activations.ACTIVATIONS`.
        scores: which to return, out of `gate`, `up` and `act`, each once.
        reduction: `max` or `sum` over a sample's positions.
        cu_seqlens: int32 or int64 [S+1] instead of lengths, for packed samples.

    Returns:
        d_gate_up [..., 2K] of gate's dtype, gradients of every row, padding included; float32 [S, len(scores)·K], the
        columns of each score in the order asked for, or None. NaN in gives NaN out. Scores take gradients before they
        are rounded to gate's dtype.

    Raises:
        ValueError: shapes disagree, an option is unknown, or a sample is empty (seen for CPU lengths only).
    """
    segments = check_gated_act_backward(dh, gate, up, lengths, activation, scores, reduction, cu_seqlens)
    work = work_dtype(dh, gate, up)
    d_gate, d_up = gated_gradients(dh.to(work), gate.to(work), up.to(work), activation)
    gradient = torch.cat([d_gate, d_up], dim=-1).to(gate.dtype)
    if segments is None:
        return gradient, None
    products = {"gate": gate.to(work) * d_gate, "up": up.to(work) * d_up, "act": up.to(work) * d_up}
    return gradient, torch.cat([reduce_positions(products[name], segments, reduction) for name in scores], dim=-1)


def gated_gradients(
    dh: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(∂gate, ∂up), in the inputs' own dtype."""
    return dh * up * activation_slope(gate, activation), dh * activate(gate, activation)


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """act(x), in x's own dtype."""
    if activation == "silu":
        return F.silu(x)
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if activation == "gelu":
        return F.gelu(x)
    return F.relu(x) if activation == "relu" else F.relu(x) ** 2


def activation_slope(x: torch.Tensor, activation: str) -> torch.Tensor:
    """act'(x), in x's own dtype; 0 at the kink of ReLU."""
    if activation == "silu":
        s = torch.sigmoid(x)
        return s * (1 + x * (1 - s))
    if activation == "gelu_tanh":
        c = math.sqrt(2 / math.pi)
        t = torch.tanh(c * (x + 0.044715 * x**3))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)
    if activation == "gelu":
        return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return torch.where(x <= 0, 0.0, torch.ones_like(x) if activation == "relu" else 2 * x)


class ScoreColumns:
    """Room for the scores asked for, side by side, of which a kernel fills those of gate and of up.

    Args:
        names: which, in the order of their columns.
        samples: S.
        columns: K.
        dtype: of the scores.
        device: where they are.

    Attributes:
        whole: [S, len(names)·K].
        gate, up: [S, K] what the kernel is to fill, None where nobody asked; `up` serves `act` too.
    """

    def __init__(
        self, names: Sequence[str], samples: int, columns: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.whole = allocate.empty((samples, len(names) * columns), dtype, device)
        self._parts = {name: self.whole[:, i * columns : (i + 1) * columns] for i, name in enumerate(names)}
        self.gate = self._parts.get("gate")
        self.up = self._parts.get("up", self._parts.get("act"))

    def filled(self) -> torch.Tensor:
        """All of them, once the kernel is done: the score of the product is that of up."""
        if "up" in self._parts and "act" in self._parts:
            self._parts["act"].copy_(self._parts["up"])
        return self.whole


def check_gated_act(gate_up: torch.Tensor, activation: str) -> None:
    """Raise ValueError, naming the argument, unless `gated_act` can take the arguments."""
    validate.option("activation", activation, ACTIVATIONS)
    if gate_up.dim() < 1 or gate_up.shape[-1] % 2:
        raise ValueError(f"gate_up must be [..., 2K], gate columns and up columns, not {list(gate_up.shape)}")


def check_gated_act_backward(
    dh: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    lengths: torch.Tensor | None,
    activation: str,
    scores: Sequence[str],
    reduction: str,
    cu_seqlens: torch.Tensor | None,
) -> Segments | None:
    """The samples to score, None when nothing is; raise ValueError unless the arguments fit together."""
    validate.option("activation", activation, ACTIVATIONS)
    validate.option("reduction", reduction, validate.FOLDED_REDUCTIONS)
    for name in scores:
        validate.option("scores", name, SCORES)
    if len(set(scores)) < len(scores):
        raise ValueError(f"scores must name each column once, not {', '.join(scores)}")
    if dh.dim() < 1:
        raise ValueError("dh must be [..., K], not a scalar")
    validate.shape("gate", gate, tuple(dh.shape))
    validate.shape("up", up, tuple(dh.shape))
    return validate.segments("dh", dh, lengths, cu_seqlens) if scores else None
