"""Models that nnsight has wrapped, scored as its own traces say."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from torch import nn

import culnig_fast as cf
from culnig_fast.models import load_model
from culnig_fast.questions import Question

IDS = torch.tensor([[5, 9, 12, 3], [7, 8, 2, 4]])
GOLD = torch.tensor([3, 1])


@pytest.fixture(scope="module")
def nnsight() -> Iterator[Any]:
    """The library; it puts its own `Tensor.backward` in place of torch's, for every test that would follow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", torch.Tensor.backward)
        library = pytest.importorskip("nnsight", reason="nnsight is not installed: pip install culnig_fast[nnsight]")
        backward = importlib.import_module("nnsight.intervention.backward")
        if hasattr(backward, "install"):  # its import, which does that, may have been another test's
            backward.install()
        yield library


def objective(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, -1].log_softmax(-1)[torch.arange(2), GOLD]


def traced(wrapped: Any, envoy: Any) -> torch.Tensor:
    """Output × gradient, [batch, position, columns], by a trace."""
    with wrapped.trace(IDS):
        act = envoy.output.save()
        with objective(wrapped.output.logits).sum().backward():
            grad = act.grad.save()
    return (act * grad).detach()


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert want.abs().max() > 0
    torch.testing.assert_close(got, want.double(), rtol=0, atol=1e-5 * float(want.abs().max()))


def test_scores_are_those_of_a_trace(nnsight: Any) -> None:
    model = families.build("llama")
    wrapped = nnsight.NNsight(model)
    gate, value = wrapped.model.layers[1].mlp.gate_proj, wrapped.model.layers[0].self_attn.v_proj
    want = [traced(wrapped, envoy).amax(1).sum(0) for envoy in (gate, value)]
    with cf.ModuleAttributor(wrapped, [gate, (value, slice(4, 9))]) as attributor:
        attributor.backward(objective(model(IDS).logits))
    got = attributor.by_path()
    assert list(got) == ["model.layers.1.mlp.gate_proj", "model.layers.0.self_attn.v_proj"]
    close(got["model.layers.1.mlp.gate_proj"][0], want[0])
    close(got["model.layers.0.self_attn.v_proj"][0], want[1][4:9])
    close(traced(wrapped, gate).amax(1).sum(0).double(), want[0])  # the wrapper works as before


def test_paths_as_nnsight_writes_them(nnsight: Any) -> None:
    model = families.build("llama")
    wrapped = nnsight.NNsight(model)
    down = wrapped.model.layers[1].mlp.down_proj
    with wrapped.trace(IDS):
        act = down.input.save()
        with objective(wrapped.output.logits).sum().backward():
            grad = act.grad.save()
    products, lengths = (act * grad).detach(), torch.tensor([4, 2])
    want = torch.stack([row[:length].sum(0) for row, length in zip(products, lengths.tolist(), strict=True)])
    path = "model.layers.1.mlp.down_proj"
    for site in (
        f"{down.path}.input",
        f"{path}.input",
        (down, slice(None), "input"),
        cf.ModuleSite(down, side="input"),
    ):
        options = {"reduction": "sum", "watch": [(path, 7, "input")]}
        with cf.ModuleAttributor(wrapped, [site], **options) as attributor:
            attributor.backward(objective(wrapped(IDS).logits), lengths=lengths)
        assert [(one.path, one.side) for one in attributor.layout.sites] == [(path, "input")]
        close(attributor.totals[0], want.sum(0))
        close(attributor.scores[:, 0].double(), want[:, 7])
    for name in (down.path, f"{down.path}.output", f"{path}.output", path):
        with cf.ModuleAttributor(wrapped, [name]) as attributor:
            attributor.backward(objective(model(IDS).logits))
        assert list(attributor.by_path()) == [path]
        close(attributor.totals[0], traced(wrapped, down).amax(1).sum(0))
    for wrong in (f"{down.path}.inputs", "model.model.layers.9.mlp"):
        with pytest.raises(cf.CulnigError, match="has no module"):
            cf.ModuleAttributor(wrapped, [wrong])
    for foreign in (down.path, f"{path}.input"):  # nothing is translated where nothing is wrapped
        with pytest.raises(cf.CulnigError, match="has no module"):
            cf.ModuleAttributor(model, [foreign])


def test_what_a_trace_changes_is_what_is_scored(nnsight: Any) -> None:
    model = families.build("llama")
    wrapped = nnsight.NNsight(model)
    gate, before = wrapped.model.layers[1].mlp.gate_proj, wrapped.model.layers[0].mlp
    with wrapped.trace(IDS):
        before.output[:] = 0
        act = gate.output.save()
        with objective(wrapped.output.logits).sum().backward():
            grad = act.grad.save()
    want = (act * grad).detach().amax(1).sum(0)
    with cf.ModuleAttributor(wrapped, [gate]) as attributor:
        with wrapped.trace(IDS):
            before.output[:] = 0
            logits = wrapped.output.logits.save()
        attributor.backward(objective(logits))
    close(attributor.totals[0], want)
    plain = traced(wrapped, gate).amax(1).sum(0)
    assert (want - plain).abs().max() > 0.1 * plain.abs().max()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore:LanguageModel is deprecated")
def test_a_language_model_is_scored_as_the_model_itself(nnsight: Any) -> None:
    model, tokenizer = load_model("demo")
    wrapped = nnsight.LanguageModel(model, tokenizer=tokenizer)
    rows = [Question(id="0", prompt="A B C A", answer="A", group="x")]
    inside, outside = (cf.attribute(one, tokenizer, rows, progress=False).totals for one in (model, wrapped))
    assert (inside == outside).all() and inside.any()


def test_a_wrapped_decoder_is_scored_and_suppressed_as_the_model_itself(nnsight: Any, tmp_path: Path) -> None:
    model, tokenizer = load_model("demo")
    wrapped = nnsight.NNsight(model)
    rows = [Question(id=str(i), prompt=text, answer="A", group="x") for i, text in enumerate(("A B C A", "B A"))]
    inside, outside = (cf.attribute(one, tokenizer, rows, progress=False) for one in (model, wrapped))
    assert torch.equal(torch.tensor(inside.totals), torch.tensor(outside.totals)) and inside.totals.any()
    chosen = cf.NeuronSet(("mlp.gate_proj",) * 64, [3] * 64, list(range(64)), [0.0] * 64)
    with cf.suppress(wrapped, chosen):
        one, other = (cf.evaluate(one, tokenizer, rows, progress=False) for one in (model, wrapped))
        assert (one.probability == other.probability).all()
    untouched = cf.evaluate(wrapped, tokenizer, rows, progress=False)
    assert (untouched.probability != other.probability).any()
    baked = cf.bake(wrapped, chosen)
    assert type(baked) is type(model)
    assert not baked.get_submodule("model.layers.3.mlp.gate_proj").weight[:64].any()
    for part in (baked, tokenizer):
        part.save_pretrained(tmp_path)
    assert torch.equal(load_model(str(tmp_path))[0](IDS).logits, baked(IDS).logits)


def test_captums_convention_takes_envoys(nnsight: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    wrapped, x = nnsight.NNsight(net), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    got = cf.LayerActGrad(wrapped, [wrapped[0]]).attribute(x, 1)
    want = cf.LayerActGrad(net, [net[0]]).attribute(x, 1)
    assert torch.equal(got[0], want[0]) and want[0].any()
    for layer in (wrapped[0], wrapped[0].path, f"{wrapped[0].path}.output", "0"):
        assert torch.equal(cf.LayerActGrad(wrapped, layer).attribute(x, 1), want[0])
    with pytest.raises(cf.CulnigError, match="attribute_to_layer_input=True"):
        cf.LayerActGrad(wrapped, "model.0.input")


def test_what_does_not_fit_is_named(nnsight: Any) -> None:
    wrapped = nnsight.NNsight(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)))
    stranger = nnsight.NNsight(nn.Sequential(nn.Linear(4, 6)))[0]
    with pytest.raises(cf.CulnigError, match="no part of the model"):
        cf.ModuleAttributor(wrapped, [stranger])
    with torch.device("meta"):
        empty = nnsight.NNsight(nn.Sequential(nn.Linear(4, 6)))
    with pytest.raises(cf.CulnigError, match="dispatch=True"):
        cf.ModuleAttributor(empty, ["0"])
