"""Models that nnsight has wrapped, scored as its own traces say."""

from __future__ import annotations

from collections.abc import Iterator
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
        yield pytest.importorskip("nnsight", reason="nnsight is not installed: pip install culnig_fast[nnsight]")


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


def test_a_wrapped_decoder_is_scored_and_suppressed_as_the_model_itself(nnsight: Any) -> None:
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


def test_captums_convention_takes_envoys(nnsight: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    wrapped, x = nnsight.NNsight(net), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    got = cf.LayerActGrad(wrapped, [wrapped[0]]).attribute(x, 1)
    want = cf.LayerActGrad(net, [net[0]]).attribute(x, 1)
    assert torch.equal(got[0], want[0]) and want[0].any()
    assert torch.equal(cf.LayerActGrad(wrapped, wrapped[0]).attribute(x, 1), want[0])


def test_what_does_not_fit_is_named(nnsight: Any) -> None:
    wrapped = nnsight.NNsight(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)))
    stranger = nnsight.NNsight(nn.Sequential(nn.Linear(4, 6)))[0]
    with pytest.raises(cf.CulnigError, match="no part of the model"):
        cf.ModuleAttributor(wrapped, [stranger])
    with torch.device("meta"):
        empty = nnsight.NNsight(nn.Sequential(nn.Linear(4, 6)))
    with pytest.raises(cf.CulnigError, match="dispatch=True"):
        cf.ModuleAttributor(empty, ["0"])
