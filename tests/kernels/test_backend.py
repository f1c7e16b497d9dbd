"""The engine on the kernels: the same totals as on plain torch, and a clear refusal where they cannot run."""

from __future__ import annotations

import families
import numpy as np
import pytest
import torch
from oracle import ORDER as SITES
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.backend import resolve
from culnig_fast.errors import CulnigError


@pytest.mark.parametrize(("reduction", "padding"), [("max", "exclude"), ("sum", "zero")])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_totals_do_not_depend_on_the_backend(family: str, reduction: str, padding: str, device: torch.device) -> None:
    model, tokenizer, questions = families.build(family).to(device), make_tokenizer(), make_questions(5)
    tables = [
        cf.attribute(
            model,
            tokenizer,
            questions,
            control=True,
            batch_size=3,
            reduction=reduction,
            padding=padding,
            backend=backend,
            path="taps",
            progress=False,
        )
        for backend in ("triton", "reference", "auto")
    ]
    scale = np.abs(tables[1].totals).max()
    assert scale > 0
    if reduction == "max":  # products are rounded alike, and a maximum rounds nothing
        assert np.array_equal(tables[0].totals, tables[1].totals)
    np.testing.assert_allclose(tables[0].totals, tables[1].totals, rtol=0, atol=1e-6 * scale)
    if device.type == "cuda":
        assert np.array_equal(tables[2].totals, tables[0].totals)
    elif reduction == "max":
        assert np.array_equal(tables[2].totals, tables[1].totals)
    np.testing.assert_allclose(tables[2].totals, tables[1].totals, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("family", families.LISTED)
def test_fused_layers_on_the_kernels_are_as_exact_as_plain_torch(family: str, device: torch.device) -> None:
    """Every kernel of the fast path, end to end, against a float64 run; fused plain torch is the measure."""
    model, tokenizer, questions = families.build(family).to(device), make_tokenizer(), make_questions(5)
    tables = {
        backend: cf.attribute(
            model, tokenizer, questions, sites=SITES, batch_size=3, backend=backend, path="fused", progress=False
        )
        for backend in ("triton", "reference")
    }
    exact = cf.attribute(
        model.double(), tokenizer, questions, sites=SITES, batch_size=3, path="taps", progress=False
    ).totals
    for site in tables["triton"].layout.sites:
        where = tables["triton"].layout.slice(site.module_name, site.layer_idx)
        error, plain = (np.abs(tables[b].totals - exact)[:, where].max() for b in ("triton", "reference"))
        scale = np.abs(exact[:, where]).max()
        assert error <= max(2 * plain, 1e-5 * scale), f"{site}: {error / scale:.1e}, plain torch {plain / scale:.1e}"


def test_an_expanded_gradient_is_taken(device: torch.device) -> None:
    act = torch.randn(2, 5, 8, device=device)
    grad = torch.ones(2, 5, 1, device=device).expand(2, 5, 8)
    lengths = torch.tensor([5, 2])
    got = resolve("triton").actgrad_reduce(act, grad, lengths)
    assert torch.equal(got, torch.stack([act[0].amax(0), act[1, :2].amax(0)]))


def test_triton_off_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    scores, totals = torch.ones(1, 4), torch.zeros(1, 4, dtype=torch.float64)
    arguments = (scores, torch.ones(1), torch.zeros(1, dtype=torch.int64), totals)
    resolve("auto").accumulate(*arguments)
    assert (totals == 1).all()
    if torch.cuda.is_available():
        with pytest.raises(CulnigError, match="tensor on cpu"):
            resolve("triton").accumulate(*arguments)
    else:
        with pytest.raises(CulnigError, match="needs a CUDA device"):
            resolve("triton")


def test_without_triton_auto_is_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    act, grad, lengths = torch.randn(2, 5, 8), torch.randn(2, 5, 8), torch.tensor([5, 2])
    plain = resolve("reference").actgrad_reduce(act, grad, lengths)
    assert torch.equal(resolve("auto").actgrad_reduce(act, grad, lengths), plain)
    with pytest.raises(CulnigError, match="not installed"):
        resolve("triton")


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(CulnigError, match="'cuda'; choose from auto, triton, reference"):
        resolve("cuda")
