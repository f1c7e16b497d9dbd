"""The cache-sized blocks of the CPU path against the plain formulation."""

from __future__ import annotations

import pytest
import torch
from checks import assert_as_exact_as_torch
from culnig_kernels import cpu, reference, validate
from culnig_kernels.activations import ACTIVATIONS
from culnig_kernels.reference.gated import activate, gated_gradients
from samples import DTYPES, draw, draw_slice

CPU = torch.device("cpu")
LENGTHS = torch.tensor([1, 63, 20])


@pytest.mark.parametrize("block", [1, 64, 700, 2**18])
@pytest.mark.parametrize("padding", ["exclude", "zero"])
@pytest.mark.parametrize("grad_dtype", DTYPES)
@pytest.mark.parametrize("act_dtype", DTYPES)
def test_the_maximum_is_the_same_to_the_bit(
    act_dtype: torch.dtype, grad_dtype: torch.dtype, padding: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_BLOCK", block)
    act, grad = draw_slice((3, 63, 70), act_dtype, CPU), draw_slice((3, 63, 70), grad_dtype, CPU, 1, before=8)
    expected = reference.actgrad_reduce(act, grad, LENGTHS, padding=padding)
    got = cpu.actgrad_reduce(act, grad, LENGTHS, padding=padding)
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("block", [64, 2**18])
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_reductions_and_masks_equal_the_reference(
    dtype: torch.dtype, block: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_BLOCK", block)
    act, grad = draw_slice((3, 63, 70), dtype, CPU), draw_slice((3, 63, 70), dtype, CPU, 1)
    keep = None
    if masked:
        keep = torch.rand(3, 63, generator=torch.Generator().manual_seed(0)) < 0.3
        keep[:, 0] = True
    for reduction in validate.REDUCTIONS:
        want = reference.actgrad_reduce(act, grad, LENGTHS, reduction, keep=keep)
        got = cpu.actgrad_reduce(act, grad, LENGTHS, reduction, keep=keep)
        if reduction in ("sum", "mean"):
            wide = [x.double() for x in (act, grad)]
            exact = reference.actgrad_reduce(*wide, LENGTHS, reduction, keep=keep)
            assert_as_exact_as_torch(reduction, got, exact, want)
        else:
            assert torch.equal(got, want), reduction


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_the_sum_is_as_exact_as_plain_torch(dtype: torch.dtype) -> None:
    act, grad = draw_slice((3, 63, 70), dtype, CPU), draw_slice((3, 63, 70), dtype, CPU, 1)
    exact = torch.stack(
        [(a.double() * g.double())[:n].sum(0) for a, g, n in zip(act, grad, LENGTHS.tolist(), strict=True)]
    )
    plain = reference.actgrad_reduce(act, grad, LENGTHS, "sum")
    assert_as_exact_as_torch("sum", cpu.actgrad_reduce(act, grad, LENGTHS, "sum"), exact, plain)


ENDS = torch.tensor([0, 1, 64, 84])


@pytest.mark.parametrize("block", [1, 700, 2**18])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_the_maximum_of_packed_samples(dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_BLOCK", block)
    act, grad = draw_slice((84, 70), dtype, CPU), draw_slice((84, 70), dtype, CPU, 1)
    act[70, 3] = torch.nan
    for padding in ("exclude", "zero"):
        expected = reference.actgrad_reduce(act, grad, None, "max", padding, cu_seqlens=ENDS)
        got = cpu.actgrad_reduce(act, grad, None, "max", padding, cu_seqlens=ENDS)
        assert got.isnan().nonzero().tolist() == [[2, 3]]
        assert torch.equal(got.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_the_sum_of_packed_samples(dtype: torch.dtype) -> None:
    act, grad = draw_slice((84, 70), dtype, CPU), draw_slice((84, 70), dtype, CPU, 1)
    plain = reference.actgrad_reduce(act, grad, None, "sum", cu_seqlens=ENDS)
    exact = torch.stack([part.sum(0) for part in (act.double() * grad.double()).split([1, 63, 20])])
    assert_as_exact_as_torch("sum", cpu.actgrad_reduce(act, grad, None, "sum", cu_seqlens=ENDS), exact, plain)


def test_padding_is_never_read_and_nan_is_never_dropped() -> None:
    act, grad = torch.ones(2, 3, 4), torch.full((2, 3, 4), -1.0)
    act[1, 2] = torch.nan
    act[0, 1, 2] = torch.nan
    got = cpu.actgrad_reduce(act, grad, torch.tensor([3, 2]), padding="zero")
    assert got[0].isnan().tolist() == [False, False, True, False]
    assert got[1].tolist() == [0, 0, 0, 0]
    assert cpu.actgrad_reduce(act, grad, torch.tensor([3, 2]))[1].tolist() == [-1, -1, -1, -1]


BLOCKS = [1, 700, 2**18]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gated_activation_is_as_exact_as_plain_torch(
    dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_BLOCK", block)
    # Whole vectors a row: what is left of one, torch computes by another routine, which rounds otherwise.
    gate_up = draw_slice((3, 63, 128), dtype, CPU)
    for activation in ACTIVATIONS:
        gate, up = gate_up.chunk(2, dim=-1)
        exact = reference.gated_act(gate_up.double(), activation)
        assert_as_exact_as_torch(activation, cpu.gated_act(gate_up, activation), exact, activate(gate, activation) * up)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("reduction", ["max", "sum"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gated_backward_is_as_exact_as_plain_torch(
    dtype: torch.dtype, activation: str, reduction: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_BLOCK", block)
    dh, gate, up = (draw_slice((3, 63, 35), dtype, CPU, seed) for seed in range(3))
    options = {"activation": activation, "scores": ("gate", "up", "act"), "reduction": reduction}
    got = cpu.gated_act_backward(dh, gate, up, LENGTHS, **options)
    exact = reference.gated_act_backward(dh.double(), gate.double(), up.double(), LENGTHS, **options)
    plain = reference.gated_act_backward(dh, gate, up, LENGTHS, **options)
    assert_as_exact_as_torch("gradients", got[0], exact[0], torch.cat(gated_gradients(dh, gate, up, activation), -1))
    for name, *three in zip(
        options["scores"], *(found[1].chunk(3, dim=-1) for found in (got, exact, plain)), strict=True
    ):
        assert_as_exact_as_torch(name, *three)
    assert got[0].dtype == dtype
    bare = cpu.gated_act_backward(dh, gate, up, LENGTHS, activation=activation)
    assert torch.equal(bare[0], got[0]) and bare[1] is None


def test_the_gated_backward_keeps_nan_and_skips_padding() -> None:
    dh, gate, up = (torch.ones(2, 3, 4) for _ in range(3))
    gate[0, 1, 2] = gate[1, 2, 0] = torch.nan
    _, scores = cpu.gated_act_backward(dh, gate, up, torch.tensor([3, 2]), scores=("gate",))
    assert scores is not None and scores.isnan().tolist() == [[False, False, True, False], [False] * 4]
    assert activate(torch.ones(1), "silu") > 0


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_are_the_same_to_the_bit(
    dtype: torch.dtype, residual: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_BLOCK", block)
    x, other, dy = (draw((3, 7, 40), dtype, CPU, seed) for seed in range(3))
    weight, add = draw((40,), dtype, CPU, 3), other if residual else None
    got = cpu.rms_norm(x, weight, 1e-6, offset=1.0, residual=add)
    expected = reference.rms_norm(x, weight, 1e-6, offset=1.0, residual=add)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    arguments = (dy, expected[1], weight, expected[2])
    back = cpu.rms_norm_backward(*arguments, offset=1.0, d_residual=add)
    assert torch.equal(back, reference.rms_norm_backward(*arguments, offset=1.0, d_residual=add))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("own_angles", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotations_are_the_same_to_the_bit(
    dtype: torch.dtype, norm: bool, own_angles: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_BLOCK", block)
    x, d_out = draw_slice((3, 63, 32), dtype, CPU), draw_slice((3, 63, 32), dtype, CPU, 1, before=8)
    phase = draw((3 if own_angles else 1, 63, 12), torch.float64, CPU, 7)
    cos, sin = phase.cos().to(dtype), phase.sin().to(dtype)
    options = {"weight": draw((16,), dtype, CPU, 2), "eps": 1e-6, "offset": 1.0} if norm else {}
    assert torch.equal(cpu.rotary(x, cos, sin, 16, **options), reference.rotary(x, cos, sin, 16, **options))
    for reduction in ("max", "sum"):
        outs = [torch.full((3, 63, 40), torch.nan, dtype=dtype)[..., 4:36] for _ in range(2)]
        got, expected = (
            run(d_out, x, cos, sin, 16, LENGTHS, score=True, reduction=reduction, out=out, **options)
            for run, out in zip((cpu.rotary_backward, reference.rotary_backward), outs, strict=True)
        )
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
        assert got[0] is outs[0]
    assert cpu.rotary_backward(d_out, x, cos, sin, 16, LENGTHS, **options)[1] is None
