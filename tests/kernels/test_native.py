"""The compiled kernels of the CPU against float64, on every set of vector instructions that this machine has."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import subprocess
import sys
from typing import Any

import pytest
import torch
from checks import assert_as_exact_as_torch
from culnig_kernels import compiled, cpu, native, reference
from culnig_kernels.reference.gated import activate, gated_gradients
from samples import DTYPES, draw, draw_slice

CPU = torch.device("cpu")
LENGTHS = torch.tensor([1, 63, 20])
NATIVE_DTYPES = tuple(compiled.TYPES)

if importlib.util.find_spec("culnig_kernels._cpu") is None:
    pytest.skip("the compiled CPU kernels were not built", allow_module_level=True)

LEVELS = importlib.import_module("culnig_kernels._cpu").levels()


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every level in turn; plain torch may not step in unseen."""
    monkeypatch.setenv(compiled.LEVEL_VARIABLE, request.param)

    def elsewhere(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the compiled kernel was not used")

    for name, _ in inspect.getmembers(cpu, inspect.isfunction):
        if hasattr(reference, name):
            monkeypatch.setattr(cpu, name, elsewhere)
    return str(request.param)


@pytest.mark.parametrize("columns", [1, 7, 1024, 1100])
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
def test_scores(dtype: torch.dtype, columns: int, level: str) -> None:
    act, grad = draw_slice((3, 63, columns), dtype, CPU), draw_slice((3, 63, columns), dtype, CPU, 1, before=8)
    wide = act.double(), grad.double()
    for reduction in native.REDUCTIONS:
        for padding in ("exclude", "zero") if reduction in ("max", "sum") else ("exclude",):
            got = native.actgrad_reduce(act, grad, LENGTHS, reduction, padding)
            plain = reference.actgrad_reduce(act, grad, LENGTHS, reduction, padding)
            if reduction in ("max", "absmax"):
                assert torch.equal(got, plain), (reduction, padding)
                continue
            exact = reference.actgrad_reduce(*wide, LENGTHS, reduction, padding)
            assert_as_exact_as_torch(f"{reduction} {padding}", got, exact, plain)


@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
def test_scores_of_marked_positions(dtype: torch.dtype, level: str) -> None:
    act, grad = draw_slice((3, 63, 70), dtype, CPU), draw_slice((3, 63, 70), dtype, CPU, 1)
    keep = (torch.rand(63, 3, generator=torch.Generator().manual_seed(0)) < 0.3).t()
    keep[:, 0] = True
    for reduction in native.REDUCTIONS:
        got = native.actgrad_reduce(act, grad, LENGTHS, reduction, keep=keep)
        plain = reference.actgrad_reduce(act, grad, LENGTHS, reduction, keep=keep)
        if reduction in ("max", "absmax"):
            assert torch.equal(got, plain), reduction
        else:
            exact = reference.actgrad_reduce(act.double(), grad.double(), LENGTHS, reduction, keep=keep)
            assert_as_exact_as_torch(reduction, got, exact, plain)
        every = native.actgrad_reduce(act, grad, LENGTHS, reduction, keep=torch.ones_like(keep))
        assert torch.equal(every, native.actgrad_reduce(act, grad, LENGTHS, reduction)), reduction


@pytest.mark.parametrize("columns", [1, 35, 600])
@pytest.mark.parametrize("activation", native.ACTIVATIONS)
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
def test_gated_activation(dtype: torch.dtype, activation: str, columns: int, level: str) -> None:
    gate_up = draw_slice((3, 63, 2 * columns), dtype, CPU)
    gate, up = gate_up.chunk(2, dim=-1)
    exact = reference.gated_act(gate_up.double(), activation)
    got = native.gated_act(gate_up, activation)
    assert got.dtype == dtype
    assert_as_exact_as_torch(activation, got, exact, activate(gate, activation) * up)


@pytest.mark.parametrize("reduction", ["max", "sum"])
@pytest.mark.parametrize("activation", native.ACTIVATIONS)
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
def test_gated_backward(dtype: torch.dtype, activation: str, reduction: str, level: str) -> None:
    dh, gate, up = (draw_slice((3, 63, 1112), dtype, CPU, seed) for seed in range(3))
    options = {"activation": activation, "scores": ("gate", "up", "act"), "reduction": reduction}
    got = native.gated_act_backward(dh, gate, up, LENGTHS, **options)
    exact = reference.gated_act_backward(dh.double(), gate.double(), up.double(), LENGTHS, **options)
    plain = reference.gated_act_backward(dh, gate, up, LENGTHS, **options)
    assert_as_exact_as_torch("gradients", got[0], exact[0], torch.cat(gated_gradients(dh, gate, up, activation), -1))
    for name, *three in zip(
        options["scores"], *(found[1].chunk(3, dim=-1) for found in (got, exact, plain)), strict=True
    ):
        assert_as_exact_as_torch(name, *three)
    assert got[0].dtype == dtype
    columns = dict(zip(options["scores"], got[1].chunk(3, dim=-1), strict=True))
    for wanted in ((), ("gate",), ("act",), ("up", "gate")):
        some = native.gated_act_backward(dh, gate, up, LENGTHS, **{**options, "scores": wanted})
        assert torch.equal(some[0], got[0])
        if wanted:
            assert torch.equal(some[1], torch.cat([columns[name] for name in wanted], dim=-1))
        else:
            assert some[1] is None


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_activations_far_out(activation: str, level: str) -> None:
    far = torch.tensor([-3e38, -1e4, -200.0, -104.5, -90.0, -0.0, 0.0, 1e-30, 90.0, 200.0, 1e4])
    ones = torch.ones_like(far)
    got = native.gated_act(torch.stack([far, ones]).flatten()[None], activation)[0]
    exact = activate(far.double(), activation)
    assert got.isfinite().all()
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=1e-35)
    slope = native.gated_act_backward(ones[None, None], far[None, None], ones[None, None], torch.tensor([1]),
                                      activation=activation)[0][0, 0, : len(far)]  # fmt: skip
    expected = torch.where(far > 0, (far > 1e-20) * 0.5 + 0.5, (far > -1) * 0.5)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-6)


def test_nan_is_never_dropped_and_padding_never_read(level: str) -> None:
    for dtype in NATIVE_DTYPES:
        act, grad = torch.ones(2, 3, 4, dtype=dtype), torch.full((2, 3, 4), -1.0, dtype=dtype)
        act[0, 1, 2] = act[1, 2] = torch.nan
        for reduction in native.REDUCTIONS:
            got = native.actgrad_reduce(act, grad, torch.tensor([3, 2]), reduction)
            assert got.isnan().tolist() == [[False, False, True, False], [False] * 4], reduction
        for reduction in ("max", "sum"):
            _, both = native.gated_act_backward(
                grad, act, grad, torch.tensor([3, 2]), scores=("gate", "up"), reduction=reduction
            )
            assert both is not None
            for scores in both.chunk(2, dim=-1):
                assert scores.isnan().tolist() == [[False, False, True, False], [False] * 4], reduction
        x = draw((2, 3, 8), dtype, CPU)
        x[0, 1, 2] = torch.nan
        y, _, rstd = native.rms_norm(x, torch.ones(8, dtype=dtype), 1e-6)
        assert y.isnan().any(-1).tolist() == rstd.isnan().tolist() == [[False, True, False], [False] * 3]
        angles = torch.ones(3, 4, dtype=dtype)
        _, scores = native.rotary_backward(x, draw((2, 3, 8), dtype, CPU, 1), angles, angles, 4,
                                           torch.tensor([3, 2]), score=True)  # fmt: skip
        assert scores is not None and scores.isnan().tolist() == [[True, False, True, False] + [False] * 4, [False] * 8]


@pytest.mark.parametrize("columns", [1, 40, 1000])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
def test_norms(dtype: torch.dtype, residual: bool, columns: int, level: str) -> None:
    x, dy = draw_slice((3, 7, columns), dtype, CPU), draw_slice((3, 7, columns), dtype, CPU, 1)
    weight, add = draw((columns,), dtype, CPU, 3), draw((3, 7, columns), dtype, CPU, 4) if residual else None
    y, z, rstd = native.rms_norm(x, weight, 1e-6, offset=1.0, residual=add)
    wide = None if add is None else add.double()
    assert torch.equal(z, x if add is None else x + add)
    assert (z is x) == (add is None)
    exact = reference.rms_norm(z.double(), weight.double(), 1e-6, offset=1.0)
    # Plain torch in the inputs' own type, as a model's norm without a kernel would run.
    by_torch = (z.float() * torch.rsqrt(z.float().square().mean(-1, keepdim=True) + 1e-6)).to(dtype) * (1 + weight)
    assert_as_exact_as_torch("norm", y, exact[0], by_torch)
    assert_as_exact_as_torch("1 / rms", rstd, exact[2], reference.rms_norm(z, weight, 1e-6)[2])
    got = native.rms_norm_backward(dy, z, weight, rstd, offset=1.0, d_residual=add)
    against = (dy, z, weight, rstd)
    want = reference.rms_norm_backward(*(t.double() for t in against), offset=1.0, d_residual=wide)
    plain = reference.rms_norm_backward(*against, offset=1.0, d_residual=add)
    assert got.dtype == dtype
    assert_as_exact_as_torch("gradient", got, want, plain)


@pytest.mark.parametrize("head_dim", [16, 80, 256])
@pytest.mark.parametrize("own_angles", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
def test_rotations(dtype: torch.dtype, norm: bool, own_angles: bool, head_dim: int, level: str) -> None:
    width = 13 * head_dim
    x, d_out = draw_slice((3, 63, width), dtype, CPU), draw_slice((3, 63, width), dtype, CPU, 1, before=8)
    phase = draw((3 if own_angles else 1, 63, head_dim - 4), torch.float64, CPU, 7)
    cos, sin = phase.cos().to(dtype), phase.sin().to(dtype)
    options = {"weight": draw((head_dim,), dtype, CPU, 2), "eps": 1e-6, "offset": 1.0} if norm else {}
    wide_options = {**options, "weight": options["weight"].double()} if norm else {}
    wide = [tensor.double() for tensor in (x, cos, sin)]
    got = native.rotary(x, cos, sin, head_dim, **options)
    plain = reference.rotary(x, cos, sin, head_dim, **options)
    assert_as_exact_as_torch("rotated", got, reference.rotary(*wide, head_dim, **wide_options), plain)
    for reduction in ("max", "sum"):
        scored = {"score": True, "reduction": reduction}
        out = torch.full((3, 63, width + 8), torch.nan, dtype=dtype)[..., 4:-4]
        gradient, scores = native.rotary_backward(d_out, x, cos, sin, head_dim, LENGTHS, out=out, **scored, **options)
        exact = reference.rotary_backward(d_out.double(), *wide, head_dim, LENGTHS, **scored, **wide_options)
        plain = reference.rotary_backward(d_out, x, cos, sin, head_dim, LENGTHS, **scored, **options)
        assert gradient is out
        assert scores is not None and exact[1] is not None and plain[1] is not None
        assert_as_exact_as_torch("gradient", gradient, exact[0], plain[0])
        assert_as_exact_as_torch(f"{reduction} of scores", scores, exact[1], plain[1])
    bare, none = native.rotary_backward(d_out, x, cos, sin, head_dim, LENGTHS, **options)
    assert torch.equal(bare, gradient) and none is None


def test_the_number_of_threads_changes_no_bit(level: str) -> None:
    dh, gate, up = (draw((5, 40, 1300), torch.float32, CPU, seed) for seed in range(3))
    weight, lengths = draw((1300,), torch.float32, CPU, 4), torch.tensor([40, 3, 7, 40, 12])
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            scored = native.gated_act_backward(dh, gate, up, lengths, scores=("gate", "up"), reduction="sum")
            runs.append([*scored, *native.rms_norm(dh, weight, 1e-6, residual=gate)])
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_what_the_loops_do_not_take_runs_on_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiled.LEVEL_VARIABLE, raising=False)
    gate_up = draw((2, 5, 12), torch.float32, CPU)
    act, grad, lengths = *gate_up.chunk(2, dim=-1), torch.tensor([5, 2])
    assert torch.equal(native.gated_act(gate_up, "gelu"), reference.gated_act(gate_up, "gelu"))
    for dtype in DTYPES:
        got = native.actgrad_reduce(act.to(dtype), grad, lengths)
        assert torch.equal(got, reference.actgrad_reduce(act.to(dtype), grad, lengths))
    last = native.actgrad_reduce(act, grad, lengths, "last")
    assert torch.equal(last, reference.actgrad_reduce(act, grad, lengths, "last"))
    ends = torch.tensor([0, 4, 10])
    packed = act.reshape(10, 6), grad.reshape(10, 6)
    assert torch.equal(
        native.actgrad_reduce(*packed, cu_seqlens=ends), reference.actgrad_reduce(*packed, cu_seqlens=ends)
    )
    scattered = draw((6, 2, 5), torch.float32, CPU).permute(1, 2, 0)
    assert torch.equal(
        native.actgrad_reduce(scattered, grad, lengths), reference.actgrad_reduce(scattered, grad, lengths)
    )


def test_wrong_arguments_are_named_before_any_memory_is_read(level: str) -> None:
    x = torch.ones(2, 3, 8)
    with pytest.raises(ValueError, match="grad must be"):
        native.actgrad_reduce(x, x[:, :2], torch.tensor([3, 3]))
    with pytest.raises(ValueError, match="lengths"):
        native.actgrad_reduce(x, x, torch.tensor([4, 3]))
    with pytest.raises(ValueError, match="up must be"):
        native.gated_act_backward(x, x, x[..., :4], torch.tensor([3, 3]), scores=("up",))
    with pytest.raises(ValueError, match="weight must be"):
        native.rms_norm(x, torch.ones(7), 1e-6)
    with pytest.raises(ValueError, match="rstd must be"):
        native.rms_norm_backward(x, x, torch.ones(8), torch.ones(2, 2))
    with pytest.raises(ValueError, match="cos must be"):
        native.rotary(x, torch.ones(2, 4), torch.ones(2, 4), 4)
    with pytest.raises(ValueError, match="out must be"):
        native.rotary_backward(x, x, torch.ones(3, 4), torch.ones(3, 4), 4, torch.tensor([3, 3]), out=x[:1])


def test_the_level_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiled.LEVEL_VARIABLE, raising=False)
    assert compiled.level() == LEVELS[-1]
    monkeypatch.setenv(compiled.LEVEL_VARIABLE, "none")
    assert compiled.level() is None
    monkeypatch.setenv(compiled.LEVEL_VARIABLE, "sse9")
    with pytest.raises(ValueError, match=r"CULNIG_CPU_LEVEL must be none, baseline.*not 'sse9'"):
        compiled.level()


def test_without_the_extension_all_runs_on_plain_torch() -> None:
    program = """
import sys
sys.modules["culnig_kernels._cpu"] = None
import torch
from culnig_kernels import compiled, native, reference
assert compiled.level() is None
x = torch.randn(2, 3, 8)
assert torch.equal(native.gated_act(x), reference.gated_act(x))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
