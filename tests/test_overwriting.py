"""Models whose kernels write over tensors that are scored: Liger's and Unsloth's do, and autograd is not told."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from torch import nn
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.interop.captum import LayerActGrad

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(9)


def write(target: torch.Tensor, values: torch.Tensor) -> None:
    """Put values where a tensor lies, as a kernel does: its version does not change."""
    target.detach().numpy()[...] = values.detach().numpy()


class GatedInPlace(torch.autograd.Function):
    """silu(gate) · up, whose backward leaves the gradients where gate and up were."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        d_gate, d_up = grad * up * (silu * (1 - sigmoid) + sigmoid), grad * silu
        write(gate, d_gate)
        write(up, d_up)
        return gate, up


class TwiceInPlace(torch.autograd.Function):
    """2x, put where x was on the way forward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        write(x, 2 * x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return 2 * grad


def twice(x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = TwiceInPlace.apply(x)
    return out


def patched(model: Any) -> Any:
    """The model with an MLP that overwrites in backward, and values that are overwritten in forward."""
    model = copy.deepcopy(model)
    for layer in model.model.layers:
        mlp = layer.mlp
        mlp.forward = lambda x, mlp=mlp: mlp.down_proj(GatedInPlace.apply(mlp.gate_proj(x), mlp.up_proj(x)))
        attention = layer.self_attn
        attention.v_proj.weight.data /= 2
        attention.v_proj.register_forward_hook(lambda module, args, output: twice(output))
    return model


def doubled(model: Any) -> Any:
    """What `patched` computes, in plain words."""
    model = copy.deepcopy(model)
    for layer in model.model.layers:
        layer.self_attn.v_proj.weight.data /= 2
        layer.self_attn.v_proj.register_forward_hook(lambda module, args, output: 2 * output)
    return model


def furthest(got: cf.ScoreTable, expected: cf.ScoreTable) -> float:
    """Largest difference at any site, as a share of the site's largest total."""
    worst = 0.0
    for site in expected.layout.sites:
        where = expected.layout.slice(site.module_name, site.layer_idx)
        largest = np.abs(expected.totals[:, where]).max()
        worst = max(worst, float(np.abs(got.totals[:, where] - expected.totals[:, where]).max() / largest))
    return worst


@pytest.mark.parametrize("options", [{}, {"path": "taps"}, {"positions": "last"}, {"recompute": True}], ids=str)
def test_scores_are_those_of_the_plain_model(options: dict[str, Any]) -> None:
    """float32 rounds at 6e-8, and two ways to write silu's derivative differ by a few of these a layer."""
    model = families.build("llama")
    expected = cf.attribute(doubled(model), TOKENIZER, QUESTIONS, progress=False, **options)
    got = cf.attribute(patched(model), TOKENIZER, QUESTIONS, progress=False, **options)
    assert furthest(got, expected) < 1e-5


def test_an_activation_in_place_is_scored_too() -> None:
    """torch itself refuses that on what a tap hands on."""
    model = families.build("llama")
    expected = cf.attribute(model, TOKENIZER, QUESTIONS, path="taps", progress=False)
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.SiLU(inplace=True)
    assert furthest(cf.attribute(model, TOKENIZER, QUESTIONS, path="taps", progress=False), expected) < 1e-5


def test_looking_leaves_no_trace() -> None:
    """Not a hook, not a sample in the totals, not a row of the watched."""
    model = patched(families.build("llama"))
    hooks = [len(module._forward_hooks) for module in model.modules()]
    attributor = cf.Attributor(model)
    watch = cf.NeuronSet.from_flat(attributor.layout, [3, 200])
    with cf.Attributor(model, watch=watch) as attributor:
        assert not attributor.totals.any()
        assert attributor.watched is None
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


class Doubling(nn.Module):
    """A layer whose output is written over."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.outer(twice(self.inner(x)))
        return out


def test_any_module_is_told_before_a_wrong_number_is() -> None:
    model, x = Doubling(), torch.randn(3, 4)
    attributor = cf.ModuleAttributor(model, ["inner"])
    with attributor, pytest.raises(cf.CulnigError, match=r"inner.*copied=True"):
        attributor.backward(model(x)[:, 1])
    with pytest.raises(cf.CulnigError, match="first batch"):
        _ = attributor.totals
    with cf.ModuleAttributor(model, ["inner"], copied=True) as attributor:
        attributor.backward(model(x)[:, 1])
    act = model.inner(x).double()
    expected = (act * 2 * model.outer.weight[1].double()).sum(0)
    torch.testing.assert_close(attributor.totals[0], expected, rtol=1e-5, atol=1e-6)


def test_the_convention_of_captum_mends_it_by_itself() -> None:
    model, x = Doubling(), torch.randn(3, 4)
    scores = LayerActGrad(model, "inner")
    expected = model.inner(x) * 2 * model.outer.weight[1]
    for _ in range(2):  # found out once, known after
        got = scores.attribute_reduced(x, target=1)
        assert isinstance(got, torch.Tensor)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A streamed model's layers are made by its class, so it is the class that is patched."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    model = families.build("llama")
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    options: dict[str, Any] = {"path": "taps", "progress": False}
    expected = cf.attribute(model, TOKENIZER, QUESTIONS, **options)
    monkeypatch.setattr(
        LlamaMLP, "forward", lambda self, x: self.down_proj(GatedInPlace.apply(self.gate_proj(x), self.up_proj(x)))
    )
    assert furthest(cf.attribute_streamed(tmp_path, TOKENIZER, QUESTIONS, **options), expected) < 1e-5
