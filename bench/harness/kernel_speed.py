"""Single kernels against the copy rate: each is bound by the bytes that it must move."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness.clock import seconds_of
from harness.roofs import copy_rate

_SAMPLES, _LENGTH, _GROUPS = 128, 128, 16
_HIDDEN, _COLUMNS, _HEADS, _KEY_HEADS, _HEAD_DIM = 4096, 14336, 32, 8, 128
"""A batch of 16,384 tokens of an 8B model: 2.3 × 10⁸ products at its gate."""
_REPEATS = 20


@dataclass(frozen=True)
class Case:
    """A kernel with its arguments.

    Attributes:
        name: of the operation.
        run: one launch.
        bytes: the least that it must read and write.
    """

    name: str
    run: Callable[[], Any]
    bytes: int


def _kernel(module: str, name: str) -> Any:
    """The launcher, or None where the project does not have it (yet) or Triton is missing."""
    try:
        return getattr(importlib.import_module(f"culnig_kernels.{module}"), name, None)
    except ImportError:
        return None


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """The kernels that exist, one at a time, so that only one holds its arguments in memory."""

    def rows(columns: int) -> torch.Tensor:
        return torch.randn(_SAMPLES, _LENGTH, columns, device=device).to(dtype)

    lengths = torch.full((_SAMPLES,), _LENGTH, device=device)
    tokens, width = _SAMPLES * _LENGTH, dtype.itemsize
    all_of_it = torch.full((1,), tokens, device=device)
    score_bytes = _SAMPLES * _COLUMNS * 4
    if run := _kernel("actgrad", "actgrad_reduce"):
        act, grad = rows(_COLUMNS), rows(_COLUMNS)
        moved = 2 * tokens * _COLUMNS * width + score_bytes
        yield Case("actgrad_max", lambda: run(act, grad, lengths), moved)
        joined = [x.view(1, tokens, -1) for x in (act, grad)]
        yield Case("actgrad_max_one_sample", lambda: run(*joined, all_of_it), moved - score_bytes + _COLUMNS * 4)
    if run := _kernel("accumulate", "accumulate"):
        scores = torch.randn(_SAMPLES, _COLUMNS, device=device)
        weight = torch.rand(_SAMPLES, dtype=torch.float64, device=device)
        group = torch.arange(_SAMPLES, device=device) % _GROUPS
        totals = torch.zeros(_GROUPS, _COLUMNS, dtype=torch.float64, device=device)
        yield Case("accumulate", lambda: run(scores, weight, group, totals), score_bytes + 2 * totals.numel() * 8)
    if run := _kernel("gated_act", "gated_act"):
        gate_up = rows(2 * _COLUMNS)
        yield Case("gated_act", lambda: run(gate_up), 3 * tokens * _COLUMNS * width)
    if run := _kernel("gated_act_backward", "gated_act_backward"):
        dh, gate_up = rows(_COLUMNS), rows(2 * _COLUMNS)
        gate, up = gate_up[..., :_COLUMNS], gate_up[..., _COLUMNS:]
        moved = 5 * tokens * _COLUMNS * width
        yield Case("gated_act_backward", lambda: run(dh, gate, up), moved)
        scored = ("gate", "up")
        yield Case(
            "gated_act_backward_scored",
            lambda: run(dh, gate, up, lengths, scores=scored),
            moved + len(scored) * score_bytes,
        )
        long = [x.view(1, tokens, -1) for x in (dh, gate_up)]
        halves = long[1].chunk(2, dim=-1)
        yield Case(
            "gated_act_backward_scored_one_sample",
            lambda: run(long[0], *halves, all_of_it, scores=scored),
            moved + len(scored) * _COLUMNS * 4,
        )
    yield from _norm_cases(rows, lengths, device, dtype)


def _norm_cases(
    rows: Callable[[int], torch.Tensor], lengths: torch.Tensor, device: torch.device, dtype: torch.dtype
) -> Iterator[Case]:
    """RMS norm and rotary embedding, forward and backward."""
    tokens, width = _SAMPLES * _LENGTH, dtype.itemsize
    forward, backward = _kernel("rms_norm", "rms_norm"), _kernel("rms_norm", "rms_norm_backward")
    if forward and backward:
        x, residual = rows(_HIDDEN), rows(_HIDDEN)
        weight = torch.ones(_HIDDEN, device=device, dtype=dtype)
        moved = tokens * _HIDDEN * width
        yield Case("rms_norm", lambda: forward(x, weight, 1e-6, residual=residual), 4 * moved)
        _, z, rstd = forward(x, weight, 1e-6, residual=residual)
        yield Case(
            "rms_norm_backward",
            lambda: backward(x, z, weight, rstd, d_residual=residual),
            4 * moved + 4 * tokens,
        )
    forward, backward = _kernel("rotary", "rotary"), _kernel("rotary_backward", "rotary_backward")
    if forward and backward:
        x, d_out = rows(_HEADS * _HEAD_DIM), rows(_HEADS * _HEAD_DIM)
        weight = torch.ones(_HEAD_DIM, device=device, dtype=dtype)
        cos, sin = torch.randn(2, _LENGTH, _HEAD_DIM, device=device).to(dtype)
        moved = tokens * _HEADS * _HEAD_DIM * width
        yield Case("rotary", lambda: forward(x, cos, sin, _HEAD_DIM, weight=weight), 2 * moved)
        yield Case(
            "rotary_backward_scored",
            lambda: backward(d_out, x, cos, sin, _HEAD_DIM, lengths, weight=weight, score=True),
            3 * moved + _SAMPLES * _HEADS * _HEAD_DIM * 4,
        )
    if run := _kernel("qkv_backward", "qkv_backward"):
        keys = _KEY_HEADS * _HEAD_DIM
        columns = _HEADS * _HEAD_DIM + 2 * keys
        qkv, d_q, d_k, d_v = rows(columns), rows(_HEADS * _HEAD_DIM), rows(keys), rows(keys)
        cos, sin = torch.randn(2, _LENGTH, _HEAD_DIM, device=device).to(dtype)
        yield Case(
            "qkv_backward_scored",
            lambda: run(qkv, d_q, d_k, d_v, cos, sin, _HEAD_DIM, lengths, score=True),
            3 * tokens * columns * width + _SAMPLES * columns * 4,
        )


def measure_kernels(device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Rows for the JSON's "kernels": median GB/s and share of the copy rate; none on a CPU.

    The kernels' own tests hold them to their oracles; here a kernel that raises is a row with its reason. One whose
    bytes fit in the cache has no share: the copy's do not.
    """
    if device.type != "cuda":
        return []
    roof, cache = copy_rate(device), torch.cuda.get_device_properties(device).L2_cache_size
    return [_measure(case, roof, cache, device) for case in cases(device, dtype)]


def _measure(case: Case, roof: float, cache: int, device: torch.device) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": case.name,
        "gb_per_s": None,
        "copy_percent": None,
        "copy_gb_per_s": roof / 1e9,
    }
    try:
        for _ in range(3):
            case.run()
        times = seconds_of(case.run, device, _REPEATS)
    except Exception as error:
        return {**row, "note": f"{type(error).__name__}: {error}"[:300]}
    cached = case.bytes < 2 * cache
    low, median, high = (case.bytes / t for t in np.percentile(times, [80, 50, 20]))
    return {
        **row,
        "gb_per_s": median / 1e9,
        "gb_per_s_p20": low / 1e9,
        "gb_per_s_p80": high / 1e9,
        "copy_percent": None if cached else 100 * median / roof,
        "note": "its bytes fit in the cache" if cached else "",
    }
