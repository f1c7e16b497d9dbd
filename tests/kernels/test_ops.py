"""The operations as torch sees them: schemas, shapes without data, compiled callers, lean imports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from culnig_kernels.accumulate import accumulate
from culnig_kernels.actgrad import actgrad_reduce
from culnig_kernels.gated_act import gated_act
from culnig_kernels.gated_act_backward import gated_act_backward
from culnig_kernels.qkv_backward import qkv_backward
from culnig_kernels.rms_norm import rms_norm, rms_norm_backward
from culnig_kernels.rotary import rotary
from culnig_kernels.rotary_backward import rotary_backward
from samples import draw

EVERYTHING = "test_schema", "test_faketensor"


def arguments(device: torch.device) -> dict[str, tuple[Any, ...]]:
    """Smallest arguments of each operator."""
    x, flat = draw((2, 3, 4), torch.bfloat16, device), draw((6, 4), torch.bfloat16, device)
    lengths, packed = (torch.tensor(b, device=device) for b in ([3, 1], [0, 4, 6]))
    weight, rstd = torch.ones(4, device=device), torch.ones(6, device=device)
    table = draw((3, 4), torch.float32, device)
    qkv = draw((2, 3, 12), torch.bfloat16, device)
    totals = torch.zeros(2, 4, dtype=torch.float64, device=device)
    ones = torch.ones(2, dtype=torch.float64, device=device)
    return {
        "actgrad_reduce": (x, x, lengths, x[:, :, 0] > 0, False, "mean", "exclude"),
        "accumulate": (x[:, 0], ones, lengths * 0, totals, True),
        "gated_act": (flat, "silu"),
        "gated_act_backward": (flat, flat, flat, packed, "gelu", "gate,act", "max"),
        "rms_norm": (flat, weight, 1e-6, 0.0, flat),
        "rms_norm_backward": (flat, flat, weight, rstd, 1.0, None),
        "rotary": (x, table, table, weight, 4, 1e-6, 0.0, 0),
        "qkv_backward": (qkv, x, x, x, table, table, torch.stack([weight] * 2), lengths, 4, 1e-6, 0.0, "max"),
        "rotary_backward": (x, x, table, table, weight, lengths, x.clone(), 4, 1e-6, 0.0, "sum"),
    }


@pytest.mark.parametrize("name", arguments(torch.device("cpu")))
def test_schema_and_shapes_are_true(name: str, device: torch.device) -> None:
    torch.library.opcheck(getattr(torch.ops.culnig, name).default, arguments(device)[name], test_utils=EVERYTHING)


def whole_pass(x: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor, totals: torch.Tensor) -> torch.Tensor:
    """Every launcher once, each fed by the one before."""
    y, z, rstd = rms_norm(x, table[0], 1e-6, residual=x)
    q = rotary(y, table, table, 4, weight=table[0, :4])
    dq, scores = rotary_backward(q, y, table, table, 4, lengths, weight=table[0, :4], score=True)
    dq = dq + qkv_backward(torch.cat([y, q, q], dim=-1), dq, q, q, table, table, 4)[0][..., :4]
    h = gated_act(dq)
    d_gate_up, max_act = gated_act_backward(h, *dq.chunk(2, dim=-1), lengths, scores=("act",))
    dz = rms_norm_backward(d_gate_up, z, table[0], rstd)
    accumulate(actgrad_reduce(dz, y, lengths), scores[:, 0].double(), lengths * 0, totals)
    return max_act


def test_compiled_callers_see_no_break(device: torch.device) -> None:
    x, table = draw((2, 4, 4), torch.float32, device), draw((4, 4), torch.float32, device)
    lengths = torch.tensor([3, 1], device=device)
    results = []
    for call in (whole_pass, torch.compile(whole_pass, backend="aot_eager", fullgraph=True)):
        totals = torch.zeros(1, 4, dtype=torch.float64, device=device)
        results.append((call(x, table, lengths, totals), totals))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert (results[0][1] != 0).any()


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run a line in a fresh interpreter, Triton's own interpreter off."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_import_is_lean() -> None:
    done = run(
        "import sys, torch, culnig_kernels, culnig_kernels.reference, culnig_fast.backend;"
        "culnig_fast.backend.resolve('auto');"
        "assert 'triton' not in sys.modules; assert not torch.cuda.is_initialized()"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a CUDA device")
def test_a_cpu_tensor_is_refused_with_the_reason() -> None:
    done = run("import torch; from culnig_kernels.gated_act import gated_act; gated_act(torch.ones(2, 4))")
    assert done.returncode != 0
    assert "gate_up is on cpu: the Triton kernels take CUDA tensors" in done.stderr


@pytest.mark.parametrize("empty", [(0, 4), (3, 0)])
def test_nothing_to_do(empty: tuple[int, int], device: torch.device) -> None:
    x = torch.ones(empty, device=device)
    calls: list[Callable[[], torch.Tensor]] = [
        lambda: gated_act(torch.cat([x, x], dim=-1)),
        lambda: gated_act_backward(x, x, x)[0][:, : empty[1]],
        lambda: rms_norm(x, torch.ones(empty[1], device=device), 1e-6)[0],
    ]
    for call in calls:
        assert call().shape == x.shape


def test_a_gradient_is_not_lost_in_silence(device: torch.device) -> None:
    x, weight = draw((2, 4), torch.float32, device), torch.ones(4, device=device, requires_grad=True)
    with pytest.raises(ValueError, match="weight requires a gradient"):
        rms_norm(x, weight, 1e-6)
    with torch.no_grad():
        assert not rms_norm(x, weight, 1e-6)[0].requires_grad
