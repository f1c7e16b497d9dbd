"""Gated activation, forward and scored backward, against float64."""

from __future__ import annotations

import pytest
import torch
from checks import assert_as_exact_as_torch
from culnig_kernels import reference
from culnig_kernels.activations import ACTIVATIONS, activation_name
from culnig_kernels.gated_act import gated_act
from culnig_kernels.gated_act_backward import gated_act_backward
from culnig_kernels.reference.gated import activate, gated_gradients
from samples import DTYPES, draw, draw_slice, packed_bounds

ALL = ("gate", "up", "act")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_on_slices(dtype: torch.dtype, activation: str, device: torch.device) -> None:
    gate_up = draw_slice((3, 21, 2 * 70), dtype, device)
    got = gated_act(gate_up, activation)
    assert got.dtype == dtype
    gate, up = gate_up.chunk(2, dim=-1)
    exact = reference.gated_act(gate_up.double(), activation)
    assert_as_exact_as_torch(activation, got, exact, activate(gate, activation) * up)


@pytest.mark.parametrize("shape", [(1, 2), (127, 2 * 513), (2, 63, 2 * 512)])
def test_forward_odd_shapes(shape: tuple[int, ...], device: torch.device) -> None:
    gate_up = draw(shape, torch.bfloat16, device)
    gate, up = gate_up.chunk(2, dim=-1)
    exact = reference.gated_act(gate_up.double())
    assert_as_exact_as_torch("silu", gated_act(gate_up), exact, activate(gate, "silu") * up)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extreme_gates(activation: str, device: torch.device) -> None:
    gate = torch.tensor([-3e4, -200.0, -12.0, -0.0, 0.0, 12.0, 200.0, 3e4], device=device)
    gate_up = torch.cat([gate, torch.ones_like(gate)])[None]
    want = reference.gated_act(gate_up.double(), activation)
    torch.testing.assert_close(gated_act(gate_up, activation), want.float(), rtol=1e-5, atol=1e-5)
    got = gated_act_backward(gate_up[:, 8:], gate_up[:, :8], gate_up[:, 8:], activation=activation)[0]
    double = gate_up.double()
    want = reference.gated_act_backward(double[:, 8:], double[:, :8], double[:, 8:], activation=activation)[0]
    torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-5)


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dh, gate and up, each a slice of another tensor."""
    return (
        draw_slice(shape, dtype, device, 0, before=8),
        draw_slice(shape, dtype, device, 1),
        draw_slice(shape, dtype, device, 2),
    )


def check_backward(
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor], lengths: list[int], packed: bool, **options: str
) -> None:
    """Gradients and scores against float64, with plain torch's error for measure."""
    dh, gate, up = tensors
    before = gate.clone(), up.clone()
    bounds = packed_bounds(lengths) if packed else torch.tensor(lengths)
    segments = {"cu_seqlens" if packed else "lengths": bounds}
    got = gated_act_backward(dh, gate, up, scores=ALL, **segments, **options)
    exact = reference.gated_act_backward(dh.double(), gate.double(), up.double(), scores=ALL, **segments, **options)
    gradients = gated_gradients(dh, gate, up, options.get("activation", "silu"))
    assert got[0].dtype == gate.dtype
    assert got[0].is_contiguous()
    assert_as_exact_as_torch("d_gate_up", got[0], exact[0], torch.cat(gradients, dim=-1))
    for name, score, want, product in zip(
        ALL,
        got[1].chunk(3, dim=-1),
        exact[1].chunk(3, dim=-1),
        (gate * gradients[0], up * gradients[1], up * gradients[1]),
        strict=True,
    ):
        rows = product.split(lengths) if packed else [p[:n] for p, n in zip(product, lengths, strict=True)]
        largest = options.get("reduction", "max") == "max"
        plain = torch.stack([r.amax(0) if largest else r.sum(0) for r in rows])
        assert score.dtype == torch.float32
        assert_as_exact_as_torch(f"score of {name}", score, want, plain)
    assert torch.equal(gate, before[0])
    assert torch.equal(up, before[1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_of_every_activation(dtype: torch.dtype, activation: str, device: torch.device) -> None:
    check_backward(inputs((3, 21, 70), dtype, device), [1, 21, 9], packed=False, activation=activation)


@pytest.mark.parametrize("reduction", ["max", "sum"])
@pytest.mark.parametrize(("lengths", "columns"), [([1], 1), ([127], 257), ([1, 63, 8, 2], 256)])
def test_backward_packed(lengths: list[int], columns: int, reduction: str, device: torch.device) -> None:
    tensors = inputs((sum(lengths), columns), torch.bfloat16, device)
    check_backward(tensors, lengths, packed=True, reduction=reduction)


@pytest.mark.parametrize("lengths", [[1, 1], [127, 64]])
def test_backward_padded_sum(lengths: list[int], device: torch.device) -> None:
    check_backward(inputs((2, 127, 33), torch.bfloat16, device), lengths, packed=False, reduction="sum")


@pytest.mark.parametrize("scores", [(), ("gate",), ("up",), ("act",), ("act", "gate"), ("up", "gate"), ("act", "up")])
def test_each_score_by_itself(scores: tuple[str, ...], device: torch.device) -> None:
    tensors = inputs((2, 70, 33), torch.bfloat16, device)
    lengths = torch.tensor([70, 3])
    all_of_them = gated_act_backward(*tensors, lengths, scores=ALL)
    got = gated_act_backward(*tensors, lengths if scores else None, scores=scores)
    assert torch.equal(got[0], all_of_them[0])
    columns = dict(zip(ALL, all_of_them[1].chunk(3, dim=-1), strict=True))
    if scores:
        assert torch.equal(got[1], torch.cat([columns[name] for name in scores], dim=-1))
    else:
        assert got[1] is None


def test_mixed_dtypes(device: torch.device) -> None:
    dh, gate, up = inputs((2, 9, 33), torch.bfloat16, device)
    check_backward((dh.float(), gate, up), [9, 4], packed=False)


def test_nan_stays_in_its_place(device: torch.device) -> None:
    dh, gate, up = (x.clone() for x in inputs((3, 21, 40), torch.bfloat16, device))
    gate[1, 20, 7] = dh[2, 0, 9] = float("nan")
    up[0, 5, 3] = float("nan")  # padding
    d_gate_up, scores = gated_act_backward(dh, gate, up, torch.tensor([1, 21, 3]), scores=ALL)
    max_gate, max_up, _ = scores.chunk(3, dim=-1)
    assert max_gate.isnan().nonzero().tolist() == [[1, 7], [2, 9]]
    assert max_up.isnan().nonzero().tolist() == [[1, 7], [2, 9]]
    assert d_gate_up.isnan().nonzero().tolist() == [[0, 5, 3], [1, 20, 7], [1, 20, 47], [2, 0, 9], [2, 0, 49]]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_reference_gradients_are_autograd_s(activation: str) -> None:
    gate, up, dh = (draw((5, 7), torch.float64, torch.device("cpu"), s) for s in range(3))
    gate.requires_grad_(True), up.requires_grad_(True)
    h = reference.gated_act(torch.cat([gate, up], dim=-1), activation)
    d_gate, d_up = torch.autograd.grad(h, (gate, up), dh)
    got = reference.gated_act_backward(
        dh, gate.detach(), up.detach(), torch.ones(1, dtype=torch.int64) * 5, activation=activation
    )[0]
    torch.testing.assert_close(got, torch.cat([d_gate, d_up], dim=-1), rtol=1e-12, atol=1e-12)


def test_the_score_of_the_product_is_that_of_up() -> None:
    dh, gate, up = (draw((1, 9, 7), torch.float64, torch.device("cpu"), s) for s in range(3))
    lengths = torch.tensor([9])
    act = reference.gated_act_backward(dh, gate, up, lengths, scores=("act",))[1]
    h = activate(gate, "silu") * up
    torch.testing.assert_close(act, reference.actgrad_reduce(h, dh, lengths), rtol=1e-12, atol=1e-14)


def test_names_of_configurations() -> None:
    assert activation_name("silu") == activation_name("swish") == "silu"
    assert activation_name("gelu_pytorch_tanh") == "gelu_tanh"
    assert activation_name("gelu") == "gelu"
    assert activation_name("quick_gelu") is None


def test_bad_arguments_are_named(device: torch.device) -> None:
    x = draw((2, 5, 4), torch.float32, device)
    lengths = torch.tensor([5, 2])
    for message, options in {
        "gate must be": {"gate": x[:, :3]},
        "up must be": {"up": x[:1]},
        "last dimension of up": {"up": x.mT.contiguous().mT},
        "dh must be bfloat16": {"dh": x.double()},
        "activation": {"activation": "tanh"},
        "scores": {"scores": ("down",)},
        "scores must name each column once": {"scores": ("up", "up")},
        "exactly one": {"scores": ("up",)},
        "lengths must lie": {"scores": ("up",), "lengths": lengths - 2},
        "leading dimensions of gate": {"gate": draw((5, 2, 4), torch.float32, device).transpose(0, 1)},
    }.items():
        with pytest.raises(ValueError, match=message):
            gated_act_backward(**{"dh": x, "gate": x, "up": x, **options})
    with pytest.raises(ValueError, match="gate_up must be"):
        gated_act(x[..., :3])
    with pytest.raises(ValueError, match="leading dimensions of gate_up"):
        gated_act(draw((5, 2, 4), torch.float32, device).transpose(0, 1))
