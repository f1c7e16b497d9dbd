"""Rotary embedding with and without the heads' norm, forward and scored backward, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import assert_as_exact_as_torch
from culnig_kernels import reference
from culnig_kernels.reference.norm import normalise, normalise_backward
from culnig_kernels.reference.rotary import rotate, rotate_back
from culnig_kernels.rotary import HEADS as HEADS_OF_A_PROGRAM
from culnig_kernels.rotary import rotary
from culnig_kernels.rotary_backward import rotary_backward
from samples import DTYPES, draw, draw_slice, packed_bounds

HEADS = 3
KINDS = [  # head_dim, rotated columns, norm offset (None: no norm)
    (16, 16, None),
    (16, 16, 0.0),
    (16, 16, 1.0),
    (24, 16, None),
    (12, 6, 0.0),
]


def angles(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin whose halves differ, so that a kernel that mixes them up is seen."""
    phase = draw(shape, torch.float64, device, 7)
    return phase.cos().to(dtype), phase.sin().to(dtype)


def formula(
    d_out: torch.Tensor,
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    head_dim: int,
    weight: torch.Tensor | None,
    offset: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rotated, gradient, x · gradient), each of x's shape, in the inputs' own dtype."""
    heads, d_heads = (t.unflatten(-1, (-1, head_dim)) for t in (x, d_out))
    gradient, normal = rotate_back(d_heads, cos, sin), heads
    if weight is not None:
        normal, rstd = normalise(heads, weight, 1e-6, offset)
        gradient = normalise_backward(gradient, heads, weight, rstd, offset)
    return tuple(t.flatten(-2) for t in (rotate(normal, cos, sin), gradient, heads * gradient))


def check(shape: tuple[int, ...], lengths: list[int], kind: tuple[Any, ...], **options: Any) -> None:
    """Forward, gradient and score of one layout against float64."""
    head_dim, rotated, offset = kind
    device, dtype, reduction = options["device"], options["dtype"], options.get("reduction", "max")
    x = draw_slice((*shape, HEADS * head_dim), dtype, device)
    d_out = draw_slice((*shape, HEADS * head_dim), dtype, device, 1, before=8)
    cos, sin = angles((*options.get("table", shape[-1:]), rotated), dtype, device)
    weight = None if offset is None else draw((head_dim,), dtype, device, 2)
    norm = {"weight": weight, "offset": offset or 0.0}
    plain = formula(d_out, x, cos, sin, head_dim, weight, offset or 0.0)
    doubles = [None if t is None else t.double() for t in (d_out, x, cos, sin)]
    exact = formula(*doubles, head_dim, None if weight is None else weight.double(), offset or 0.0)

    out = rotary(x, cos, sin, head_dim, **norm)
    assert (out.dtype, out.shape) == (dtype, x.shape)
    assert_as_exact_as_torch("rotated", out, exact[0], plain[0])
    packed = len(shape) == 1
    bounds = {"cu_seqlens": packed_bounds(lengths)} if packed else {"lengths": torch.tensor(lengths)}
    before = x.clone()
    dx, scores = rotary_backward(d_out, x, cos, sin, head_dim, score=True, reduction=reduction, **norm, **bounds)
    assert torch.equal(x, before)
    assert (dx.dtype, scores.dtype) == (dtype, torch.float32)
    assert_as_exact_as_torch("gradient", dx, exact[1], plain[1])
    reduced = []
    for product in (exact[2], plain[2]):
        rows = product.split(lengths) if packed else [p[:n] for p, n in zip(product, lengths, strict=True)]
        reduced.append(torch.stack([r.amax(0) if reduction == "max" else r.sum(0) for r in rows]))
    assert_as_exact_as_torch("score", scores, *reduced)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_padded(dtype: torch.dtype, kind: tuple[Any, ...], device: torch.device) -> None:
    check((3, 21), [1, 21, 9], kind, dtype=dtype, device=device)


@pytest.mark.parametrize("reduction", ["max", "sum"])
@pytest.mark.parametrize("lengths", [[1], [63, 1, 2]])
def test_packed(lengths: list[int], reduction: str, device: torch.device) -> None:
    check((sum(lengths),), lengths, KINDS[1], dtype=torch.bfloat16, device=device, reduction=reduction)


@pytest.mark.parametrize("table", [(2, 127), (1, 127)])
def test_a_table_for_each_sample(table: tuple[int, int], device: torch.device) -> None:
    check((2, 127), [127, 64], KINDS[1], dtype=torch.bfloat16, device=device, table=table)


def test_without_score_into_a_slice(device: torch.device) -> None:
    x, d_out = (draw((2, 70, 48), torch.bfloat16, device, s) for s in (0, 1))
    cos, sin = angles((70, 16), torch.float32, device)
    weight = draw((16,), torch.float32, device, 2)
    want, none = rotary_backward(d_out, x, cos, sin, 16, weight=weight)
    assert none is None
    fused = torch.full((2, 70, 100), 7.0, dtype=torch.bfloat16, device=device)
    got, scores = rotary_backward(
        d_out, x, cos, sin, 16, torch.tensor([70, 3]), weight=weight, score=True, out=fused[..., 20:68]
    )
    assert got.data_ptr() == fused[..., 20:68].data_ptr()
    assert torch.equal(got, want)
    assert (fused[..., :20] == 7).all()
    assert (fused[..., 68:] == 7).all()
    flat = rotary_backward(d_out[0], x[0], cos, sin, 16, weight=weight)[0]
    assert torch.equal(flat, want[0])
    assert scores.shape == (2, 48)


def test_nan_stays_in_its_head(device: torch.device) -> None:
    x, d_out = (draw((2, 9, 48), torch.float32, device, s) for s in (0, 1))
    cos, sin = angles((9, 16), torch.float32, device)
    d_out[1, 2, 20] = float("nan")
    d_out[0, 5, 3] = float("nan")  # padding
    _, scores = rotary_backward(d_out, x, cos, sin, 16, torch.tensor([4, 9]), score=True)
    assert scores.isnan().nonzero().tolist() == [[1, 20], [1, 28]]


def test_the_layout_is_hugging_face_s() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    cpu = torch.device("cpu")
    x = draw((2, 7, 48), torch.float64, cpu)
    cos, sin = angles((2, 7, 16), torch.float64, cpu)
    q = x.unflatten(-1, (-1, 16)).transpose(1, 2)
    want, _ = apply_rotary_pos_emb(q, q, cos, sin)
    torch.testing.assert_close(reference.rotary(x, cos, sin, 16), want.transpose(1, 2).flatten(-2))


@pytest.mark.parametrize("kind", KINDS)
def test_reference_gradient_is_autograd_s(kind: tuple[Any, ...]) -> None:
    head_dim, rotated, offset = kind
    cpu = torch.device("cpu")
    x, d_out = (draw((2, 7, HEADS * head_dim), torch.float64, cpu, s) for s in (0, 1))
    cos, sin = angles((7, rotated), torch.float64, cpu)
    norm = {
        "weight": None if offset is None else draw((head_dim,), torch.float64, cpu, 2),
        "offset": offset or 0.0,
    }
    (want,) = torch.autograd.grad(reference.rotary(x.requires_grad_(True), cos, sin, head_dim, **norm), x, d_out)
    got, scores = reference.rotary_backward(
        d_out, x.detach(), cos, sin, head_dim, torch.tensor([7, 3]), score=True, **norm
    )
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    product = x.detach() * want
    torch.testing.assert_close(scores, torch.stack([product[0].amax(0), product[1, :3].amax(0)]))


def test_bad_arguments_are_named(device: torch.device) -> None:
    x = draw((2, 5, 32), torch.float32, device)
    cos, sin = angles((5, 16), torch.float32, device)
    good = {"x": x, "cos": cos, "sin": sin, "head_dim": 16}
    for message, options in {
        "x must be": {"head_dim": 15},
        "cos must have an even": {"cos": cos[:, :15]},
        "cos must be": {"cos": cos[:4]},
        "sin must be": {"sin": sin[:4]},
        "weight must be": {"weight": x.new_ones(15)},
        "x must be bfloat16": {"x": x.double()},
        "last dimension of x": {"x": x.mT.contiguous().mT},
    }.items():
        with pytest.raises(ValueError, match=message):
            rotary(**{**good, **options})
    for message, options in {
        "d_out must be": {"d_out": x[:1]},
        "out must be": {"out": x[:1]},
        "reduction": {"reduction": "mean"},
        "exactly one": {"score": True},
        "lengths must lie": {"score": True, "lengths": torch.tensor([6, 1])},
    }.items():
        with pytest.raises(ValueError, match=message):
            rotary_backward(**{"d_out": x, **good, **options})


def test_more_heads_than_a_program_takes(device: torch.device) -> None:
    """Queries and keys side by side, the border between them inside a program's heads."""
    heads, queries = 2 * HEADS_OF_A_PROGRAM + 3, HEADS_OF_A_PROGRAM + 3
    x, weight = draw_slice((2, 21, heads * 16), torch.bfloat16, device), draw((2, 16), torch.bfloat16, device, 2)
    cos, sin = angles((21, 12), torch.bfloat16, device)
    got = rotary(x, cos, sin, 16, weight=weight, queries=queries)
    exact = reference.rotary(x.double(), cos.double(), sin.double(), 16, weight=weight.double(), queries=queries)
    own = weight[(torch.arange(heads, device=device) >= queries).long()]
    normal, _ = normalise(x.unflatten(-1, (-1, 16)), own, 1e-6, 0.0)
    assert_as_exact_as_torch("rotated", got, exact, rotate(normal, cos, sin).flatten(-2))
