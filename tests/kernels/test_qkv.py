"""The joined projections' backward, scored, against float64 and against the operations that it takes the place of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import assert_as_exact_as_torch
from culnig_kernels import compiled, native, reference
from culnig_kernels.actgrad import actgrad_reduce
from culnig_kernels.qkv_backward import qkv_backward
from culnig_kernels.reference.norm import normalise_backward
from culnig_kernels.reference.rotary import rotate_back
from culnig_kernels.rotary import rotary
from culnig_kernels.rotary_backward import rotary_backward
from samples import DTYPES, draw, draw_slice, packed_bounds
from test_rotary import KINDS, angles

QUERIES, KEYS = 4, 2
"""Heads."""


def inputs(shape: tuple[int, ...], kind: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arguments of a layer with four query heads and two key heads; kind as in test_rotary."""
    head_dim, rotated, offset = kind
    widths = {"qkv": QUERIES + 2 * KEYS, "d_q": QUERIES, "d_k": KEYS, "d_v": KEYS}
    tensors = {
        name: draw_slice((*shape, heads * head_dim), dtype, device, 10 + seed, before=8 * seed)
        for seed, (name, heads) in enumerate(widths.items())
    }
    cos, sin = angles((shape[-1], rotated), dtype, device)
    weight = None if offset is None else draw((2, head_dim), dtype, device, 9)
    return {**tensors, "cos": cos, "sin": sin, "head_dim": head_dim, "weight": weight, "offset": offset or 0.0}


def formula(given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient, qkv · gradient) in the inputs' own dtype."""
    gradients = []
    heads = given["qkv"].unflatten(-1, (-1, given["head_dim"]))
    queries = QUERIES if given["d_q"] is not None else 0
    parts = (heads[..., :queries, :], heads[..., queries : queries + KEYS, :])
    for row, (d, x) in enumerate(zip((given["d_q"], given["d_k"]), parts, strict=True)):
        if d is None:
            continue
        gradient = rotate_back(d.unflatten(-1, (-1, given["head_dim"])), given["cos"], given["sin"])
        if given["weight"] is not None:
            rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
            gradient = normalise_backward(gradient, x, given["weight"][row], rstd, given["offset"])
        gradients.append(gradient.flatten(-2))
    whole = torch.cat([*gradients, given["d_v"]], dim=-1)
    return whole, given["qkv"] * whole


def wide(given: dict[str, Any]) -> dict[str, Any]:
    """The same in float64."""
    return {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in given.items()}


def reduced(product: torch.Tensor, lengths: list[int], reduction: str) -> torch.Tensor:
    """[S, columns] over each sample's own rows, padded or packed."""
    rows = product.split(lengths) if product.dim() == 2 else [p[:n] for p, n in zip(product, lengths, strict=True)]
    return torch.stack([r.amax(0) if reduction == "max" else r.sum(0) for r in rows])


def check(given: dict[str, Any], lengths: list[int], reduction: str = "max") -> None:
    packed = given["qkv"].dim() == 2
    bounds = {"cu_seqlens": packed_bounds(lengths)} if packed else {"lengths": torch.tensor(lengths)}
    before = given["qkv"].clone()
    gradient, scores = qkv_backward(**given, score=True, reduction=reduction, **bounds)
    assert torch.equal(given["qkv"], before)
    assert gradient.is_contiguous() and (gradient.dtype, scores.dtype) == (before.dtype, torch.float32)
    exact, plain = formula(wide(given)), formula(given)
    assert_as_exact_as_torch("gradient", gradient, exact[0], plain[0])
    assert_as_exact_as_torch("score", scores, *(reduced(p[1], lengths, reduction) for p in (exact, plain)))
    alone, none = qkv_backward(**given)
    assert none is None  # without scores it is another kernel, in which a compiler may round otherwise
    assert_as_exact_as_torch("gradient alone", alone, exact[0], plain[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_padded(dtype: torch.dtype, kind: tuple[Any, ...], device: torch.device) -> None:
    # Enough scores that the largest error of either way is no matter of luck.
    check(inputs((6, 21), kind, dtype, device), [1, 21, 9, 20, 2, 21])


@pytest.mark.parametrize("reduction", ["max", "sum"])
@pytest.mark.parametrize("lengths", [[1], [63, 1, 2]])
def test_packed(lengths: list[int], reduction: str, device: torch.device) -> None:
    check(inputs((sum(lengths),), KINDS[1], torch.bfloat16, device), lengths, reduction)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_keys_and_values_alone(kind: tuple[Any, ...], device: torch.device) -> None:
    given = inputs((2, 127), kind, torch.bfloat16, device)
    check({**given, "qkv": given["qkv"][..., QUERIES * kind[0] :], "d_q": None}, [127, 64])


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_the_single_operations_give(kind: tuple[Any, ...], device: torch.device) -> None:
    """To the bit: the same formula in the same order."""
    given = inputs((3, 21), kind, torch.bfloat16, device)
    head_dim, lengths = kind[0], torch.tensor([1, 21, 9])
    gradient, scores = qkv_backward(**given, lengths=lengths, score=True)
    norm = [{} if given["weight"] is None else {"weight": given["weight"][row], "offset": kind[2]} for row in (0, 1)]
    columns = [QUERIES * head_dim, KEYS * head_dim, KEYS * head_dim]
    q, k, v = given["qkv"].split(columns, dim=-1)
    tables = given["cos"], given["sin"], head_dim, lengths
    d_q, score_q = rotary_backward(given["d_q"], q, *tables, score=True, **norm[0])
    d_k, score_k = rotary_backward(given["d_k"], k, *tables, score=True, **norm[1])
    assert torch.equal(gradient, torch.cat([d_q, d_k, given["d_v"]], dim=-1))
    assert torch.equal(scores, torch.cat([score_q, score_k, actgrad_reduce(v, given["d_v"], lengths)], dim=-1))
    both = {"weight": given["weight"], "offset": kind[2] or 0.0, "queries": QUERIES}
    turned = rotary(given["qkv"][..., : sum(columns[:2])], *tables[:3], **both)
    alone = [rotary(x, *tables[:3], **own) for x, own in ((q, norm[0]), (k, norm[1]))]
    assert torch.equal(turned, torch.cat(alone, dim=-1))


@pytest.mark.parametrize("where", ["reference", "blocks", "native"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_cpu(dtype: torch.dtype, kind: tuple[Any, ...], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch, blocks of it where no compiled kernel is, and the compiled kernels."""
    home = reference if where == "reference" else native
    if where == "blocks":
        monkeypatch.setenv(compiled.LEVEL_VARIABLE, "none")
    given, lengths = inputs((3, 63), kind, dtype, torch.device("cpu")), [1, 63, 20]
    exact, plain = formula(wide(given)), formula(given)
    for reduction in ("max", "sum"):
        gradient, scores = home.qkv_backward(**given, lengths=torch.tensor(lengths), score=True, reduction=reduction)
        assert_as_exact_as_torch("gradient", gradient, exact[0], plain[0])
        assert_as_exact_as_torch("score", scores, *(reduced(p[1], lengths, reduction) for p in (exact, plain)))
    both = {"weight": given["weight"], "offset": given["offset"], "queries": QUERIES}
    heads = given["qkv"][..., : (QUERIES + KEYS) * kind[0]]
    alone = reference.rotary(heads, given["cos"], given["sin"], kind[0], **both)
    turned = home.rotary(heads, given["cos"], given["sin"], kind[0], **both)
    torch.testing.assert_close(turned, alone, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_nan_stays_in_its_head(device: torch.device) -> None:
    given = inputs((2, 9), (16, 16, None), torch.float32, device)
    given |= {name: given[name].clone() for name in ("d_q", "d_v")}
    given["d_q"][1, 2, 20] = given["d_v"][0, 1, 3] = float("nan")
    given["d_v"][0, 5, 4] = float("nan")  # padding
    _, scores = qkv_backward(**given, lengths=torch.tensor([4, 9]), score=True)
    assert scores.isnan().nonzero().tolist() == [[0, 6 * 16 + 3], [1, 20], [1, 28]]


def test_an_infinite_gradient_of_a_value_reaches_that_value_alone(device: torch.device) -> None:
    given = inputs((1, 3), (16, 16, None), torch.float32, device)
    given["d_v"] = given["d_v"].clone()
    given["d_v"][0, 1, 3] = float("inf")
    gradient, _ = qkv_backward(**given)
    assert (~gradient.isfinite()).nonzero().tolist() == [[0, 1, 6 * 16 + 3]]


def test_bad_arguments_are_named(device: torch.device) -> None:
    given = inputs((2, 5), KINDS[1], torch.float32, device)
    for message, options in {
        "qkv must hold the columns": {"qkv": given["qkv"][..., :-16]},
        "whole heads of 15": {"head_dim": 15},
        "d_q must be": {"d_q": given["d_q"][:1]},
        "d_k must be": {"d_k": given["d_k"][:, :4], "d_v": given["d_v"][:, :4]},
        "cos must be": {"cos": given["cos"][:4]},
        "weight must be": {"weight": given["weight"][0]},
        "d_v must be bfloat16": {"d_v": given["d_v"].double()},
        "last dimension of d_v": {"d_v": given["d_v"].mT.contiguous().mT},
        "reduction": {"reduction": "mean"},
        "exactly one": {"score": True},
        "lengths must lie": {"score": True, "lengths": torch.tensor([6, 1])},
    }.items():
        with pytest.raises(ValueError, match=message):
            qkv_backward(**{**given, **options})
    with pytest.raises(ValueError, match="queries must lie in 0…8"):
        rotary(given["qkv"], given["cos"], given["sin"], 16, weight=given["weight"], queries=9)
