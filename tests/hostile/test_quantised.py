"""Quantised models: those with a backward are scored as the weights that they stand for, the others refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import build
from torch import nn
from torch.nn import functional as F
from wordlevel import make_questions, make_tokenizer

from culnig_fast.attribution import attribute
from culnig_fast.attributor import Attributor
from culnig_fast.baselines.weights import weight_norms
from culnig_fast.errors import CulnigError
from culnig_fast.last_position import frozen_parameters
from culnig_fast.masking import bake, suppress
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.quantised import why_not_plain
from culnig_fast.running.fingerprint import fingerprint

SET = NeuronSet(("mlp.gate_proj", "self_attn.v_proj", "mlp.act"), [0, 1, 1], [3, 2, 5], [1.0, 1.0, 1.0])


def _quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


class WeightOnly(nn.Linear):
    """int8 weights, a scale a row; widened for the product, as the usual weight-only layers do."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        values, scale = _quantise(linear.weight.detach())
        self.weight = nn.Parameter(values, requires_grad=False)
        self.register_buffer("scale", scale)

    def dequantised(self) -> torch.Tensor:
        return self.weight.float() * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.dequantised())


class Buffers(nn.Module):
    """The same in a class that is no nn.Linear, its numbers in buffers, as GPTQ's layers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        values, scale = _quantise(linear.weight.detach())
        self.register_buffer("qweight", values)
        self.register_buffer("scale", scale)

    def dequantised(self) -> torch.Tensor:
        return self.qweight.float() * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.dequantised())


class NoBackward(Buffers):
    """A kernel that autograd cannot see into."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return F.linear(x, self.dequantised())


class _Raises(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        raise NotImplementedError("fp8 has no backward")


class RaisingBackward(Buffers):
    """A kernel whose backward says that there is none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Raises.apply(x, self.dequantised())


def replaced(model: Any, make: Callable[[nn.Linear], nn.Module], which: str = "") -> Any:
    """The model with the projections of its layers replaced; `which` is part of their paths."""
    for layer in model.model.layers:
        for path, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear) and which in path:
                parent, _, name = path.rpartition(".")
                setattr(layer.get_submodule(parent), name, make(module))
    return model


def plain(linear: Any) -> nn.Module:
    """An ordinary projection with the numbers that a quantised one stands for."""
    made = nn.Linear(linear.in_features, linear.out_features, bias=False)
    made.weight = nn.Parameter(linear.dequantised())
    return made


def totals(model: Any, path: str = "auto") -> tuple[Any, torch.Tensor]:
    input_ids, lengths = torch.arange(3, 18).view(3, 5), torch.tensor([5, 3, 1])
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.act")
    with Attributor(model, sites=names, path=path) as attributor:
        logits = attributor.forward(input_ids, lengths)
        attributor.backward(torch.log_softmax(logits, -1)[:, 6])
    return attributor, attributor.totals


def assert_same_scores(model: Any, reference: Any) -> None:
    """Within 1e-5 of each site's largest score, as an engine is held to its oracle in float32."""
    attributor, got = totals(model)
    _, expected = totals(reference, "taps")
    assert attributor.fusion.layers == ()
    for site in attributor.layout.sites:
        where = attributor.layout.slice(site.module_name, site.layer_idx)
        largest = expected[:, where].abs().max()
        assert largest > 0
        assert (got[:, where] - expected[:, where]).abs().max() <= 1e-5 * largest, site


@pytest.mark.parametrize("kind", [WeightOnly, Buffers])
def test_weight_only_layers_are_scored_on_taps(kind: Any) -> None:
    model = replaced(build("llama"), kind)
    reference = replaced(build("llama"), lambda linear: plain(kind(linear)))
    assert_same_scores(model, reference)
    attributor, _ = totals(model)
    assert kind.__name__ in attributor.fusion.reasons[0]
    with pytest.raises(CulnigError, match="no layer of LlamaForCausalLM can be fused"):
        totals(model, "fused")


def test_one_quantised_layer_leaves_the_others_fused() -> None:
    model = build("llama")
    layer = model.model.layers[1]
    layer.mlp.down_proj = WeightOnly(layer.mlp.down_proj)
    attributor, got = totals(model)
    assert attributor.fusion.layers == (0,)
    layer.mlp.down_proj = plain(layer.mlp.down_proj)
    _, expected = totals(model, "taps")
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("make", "which", "words"),
    [
        (NoBackward, "", r"q_proj \(NoBackward\) passes no gradient back.*weights alone"),
        (NoBackward, "gate_proj", r"layers\.0\.mlp\.gate_proj \(NoBackward\)"),
        (NoBackward, "o_proj", r"layers\.0\.self_attn\.o_proj"),
        (RaisingBackward, "up_proj", r"no backward pass \(fp8 has no backward\)"),
    ],
)
@pytest.mark.parametrize("path", ["auto", "taps"])
def test_a_kernel_without_a_backward_is_refused_by_name(make: Any, which: str, words: str, path: str) -> None:
    model = replaced(build("llama"), make, which)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with pytest.raises(CulnigError, match=words):
        totals(model, path)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_plain_models_are_not_run_for_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("ran")

    monkeypatch.setattr("culnig_fast.quantised._unreached", never)
    totals(build("llama"), "taps")
    with pytest.raises(AssertionError, match="ran"):
        totals(replaced(build("llama"), WeightOnly), "taps")


@pytest.mark.parametrize("kind", [WeightOnly, Buffers])
def test_suppressing_works_by_hooks_and_baking_is_refused(kind: Any) -> None:
    model = replaced(build("llama"), kind)
    reference = replaced(build("llama"), lambda linear: plain(kind(linear)))
    tokens = torch.arange(3, 9)[None]
    with torch.no_grad(), suppress(model, SET), suppress(reference, SET):
        torch.testing.assert_close(model(tokens).logits, reference(tokens).logits)
    for action in (lambda: bake(model, SET), lambda: weight_norms(model)):
        with pytest.raises(CulnigError, match=rf"is quantised \({kind.__name__}.*unquantised"):
            action()


def test_a_run_tells_quantised_models_apart() -> None:
    model = replaced(build("llama"), Buffers)
    other = replaced(build("llama", seed=1), Buffers)
    numbers = [fingerprint(m) for m in (model, copy.deepcopy(model), other)]
    assert numbers[0] == numbers[1] != numbers[2]
    tokenizer = make_tokenizer()
    table = attribute(model, tokenizer, make_questions(6), progress=False)
    assert (table.totals != 0).any(axis=0).mean() > 0.5


def test_freezing_leaves_integers_as_they_are() -> None:
    model = replaced(build("llama"), WeightOnly)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with frozen_parameters(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert any(before.values())


def test_plain_projections_are_plain() -> None:
    for name in ("llama", "gpt2_conv1d_fused", "phi3"):
        model = build(name, torch.bfloat16)
        kinds = [why_not_plain(m) for m in model.modules() if hasattr(m, "weight") and m.weight.dim() == 2]
        assert set(kinds) <= {None, "Embedding with torch.bfloat16 weights"}


def _torchao(config: str) -> Any:
    """A small Llama quantised by torchao, its embedding and head left alone."""
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    if not hasattr(quantization, config):
        pytest.skip(f"this torchao has no {config}")
    model = build("llama")
    quantization.quantize_(model.model, getattr(quantization, config)())
    if type(model.model.layers[0].mlp.up_proj.weight) is nn.Parameter:
        pytest.skip(f"this torchao leaves weights alone with {config}")
    return model


@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_torchao_weight_only_models_are_scored(config: str) -> None:
    model = _torchao(config)
    reference = build("llama")
    with torch.no_grad():
        for mine, theirs in zip(reference.model.layers, model.model.layers, strict=True):
            for path, module in mine.named_modules():
                if isinstance(module, nn.Linear):
                    module.weight.copy_(theirs.get_submodule(path).weight.dequantize())
    assert_same_scores(model, reference)
    attributor, _ = totals(model)
    assert "Tensor" in attributor.fusion.reasons[0]
    sums = fingerprint(model)["weights"]
    assert sums["model.layers.0.mlp.up_proj.weight"] != sums["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(CulnigError, match="is quantised"):
        bake(model, SET)
    tokens = torch.arange(3, 9)[None]
    with torch.no_grad(), suppress(model, SET), suppress(reference, SET):
        torch.testing.assert_close(model(tokens).logits, reference(tokens).logits, rtol=1e-4, atol=1e-4)


def test_torchao_models_that_quantise_activations_are_refused_by_name() -> None:
    model = _torchao("Int8DynamicActivationInt8WeightConfig")
    with pytest.raises(CulnigError, match=r"q_proj \(.*Tensor weights\) passes no gradient back"):
        totals(model)
