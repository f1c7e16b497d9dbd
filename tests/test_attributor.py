"""Attributor: any objective, no trace left, clear refusals."""

from __future__ import annotations

import copy
from typing import Any

import families
import numpy as np
import oracle
import pytest
import torch
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.last_position import frozen_parameters

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(6)


def state_of(model: Any) -> tuple[Any, ...]:
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad is None for parameter in model.parameters()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        copy.deepcopy(model.config.to_dict()),
    )


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3_multimodal"])
def test_the_model_is_left_exactly_as_it_was(family: str) -> None:
    model = families.build(family).train()
    model.get_input_embeddings().weight.requires_grad_(False)
    model.get_decoder().layers[0].eval()
    before, bits = state_of(model), {name: value.clone() for name, value in model.state_dict().items()}
    cf.attribute(model, TOKENIZER, QUESTIONS, progress=False)
    assert state_of(model) == before
    assert all(torch.equal(value, bits[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("where", ["forward", "backward", "entering"])
def test_the_model_is_left_as_it_was_when_something_raises(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.build("llama").train()
    before = state_of(model)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("on purpose")

    if where == "forward":
        monkeypatch.setattr("culnig_fast.last_position.LastPosition.logits", fail)
    elif where == "backward":
        monkeypatch.setattr("culnig_kernels.native.qkv_backward", fail)
    else:
        monkeypatch.setattr("culnig_fast.attributor.attach_taps", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        cf.attribute(model, TOKENIZER, QUESTIONS, progress=False)
    assert state_of(model) == before


def test_a_model_made_under_inference_mode_is_refused_as_it_is() -> None:
    model = families.build("llama")
    with torch.inference_mode():
        model.model.layers[1] = copy.deepcopy(model.model.layers[1])
    before = state_of(model)
    with pytest.raises(cf.CulnigError, match=r"model\.layers\.1\..* made under torch\.inference_mode\(\)"):
        cf.attribute(model, TOKENIZER, QUESTIONS, progress=False)
    assert state_of(model) == before


def test_freezing_that_fails_midway_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.build("llama")
    last = list(model.parameters())[-1]
    freeze = torch.nn.Parameter.requires_grad_

    def fail(parameter: Any, value: bool = True) -> Any:
        if parameter is last and not value:
            raise RuntimeError("on purpose")
        return freeze(parameter, value)

    monkeypatch.setattr(torch.nn.Parameter, "requires_grad_", fail)
    with pytest.raises(RuntimeError, match="on purpose"), frozen_parameters(model):
        pass
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_dropout_is_off() -> None:
    model = families.build("llama").train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    runs = [cf.attribute(model, TOKENIZER, QUESTIONS, progress=False) for _ in range(2)]
    assert np.array_equal(runs[0].totals, runs[1].totals)


def test_a_model_without_a_backward_pass_is_refused() -> None:
    """Reformer's own backward asserts that the model is in training mode."""
    model = families.build("reformer_no_backward")
    before = state_of(model)
    with pytest.raises(cf.CulnigError, match="ReformerModelWithLMHead has no backward pass in evaluation mode"):
        cf.attribute(model, TOKENIZER, QUESTIONS, progress=False)
    assert state_of(model) == before


def test_any_objective() -> None:
    """A logit difference on one sample: totals are weight × max over positions of act × its gradient."""
    model = families.build("llama")
    tokens = torch.tensor([TOKENIZER(QUESTIONS[4].prompt)["input_ids"]])
    with cf.Attributor(model, sites=("mlp.gate_proj",), n_groups=2) as attributor:
        logits = attributor.forward(tokens, torch.tensor([tokens.shape[1]]))
        attributor.backward(logits[:, 5] - logits[:, 6], weight=torch.tensor([-3.0]), group=torch.tensor([1]))
        totals = attributor.totals
    assert totals.dtype == torch.float64
    assert totals.shape == (2, 96)
    assert not totals[0].any()
    double = copy.deepcopy(model).double().requires_grad_(True)
    kept, handles = oracle.activation_tensors(double)
    last = double(input_ids=tokens).logits[0, -1]
    (last[5] - last[6]).backward()
    expected = [oracle.columns_of(double, "mlp.gate_proj", index, kept) for index in range(2)]
    want = np.concatenate([-3 * (act * grad).max(0) for act, grad in expected])
    np.testing.assert_allclose(totals[1].numpy(), want, atol=1e-5 * np.abs(want).max())
    for handle in handles:
        handle.remove()


def test_gradient_checkpointing_scores_each_neuron_once() -> None:
    model = families.build("llama")
    plain = cf.attribute(model, TOKENIZER, QUESTIONS, progress=False)
    model.gradient_checkpointing_enable()
    with cf.Attributor(model, n_groups=3) as attributor:
        model.train()
        for question in QUESTIONS:
            tokens = torch.tensor([TOKENIZER(question.prompt)["input_ids"]])
            logits = attributor.forward(tokens, torch.tensor([tokens.shape[1]]))
            log_p = torch.log_softmax(logits, -1)[:, TOKENIZER.convert_tokens_to_ids(question.answer)]
            group = torch.tensor([int(question.group[-1])])
            attributor.backward(log_p, weight=log_p.detach().double().exp() ** 2, group=group)
        totals = attributor.totals.numpy()
        model.eval()
    np.testing.assert_allclose(totals, plain.totals, atol=1e-5 * np.abs(plain.totals).max())


def test_refusals() -> None:
    model = families.build("llama")
    for options, word in (
        ({"reduction": "median"}, "reduction"),
        ({"reduction": "mean", "padding": "zero"}, "parity"),
        ({"reduction": "last", "path": "fused"}, "on taps"),
        ({"padding": "left"}, "padding"),
        ({"backend": "cuda"}, "backend"),
        ({"n_groups": 0}, "group"),
        ({"sites": ("mlp.down_proj",)}, "mlp.down_proj"),
        ({"sites": ()}, "no neuron module"),
    ):
        with pytest.raises(cf.CulnigError, match=word):
            cf.Attributor(model, **options)  # type: ignore[arg-type]
    attributor = cf.Attributor(model)
    tokens = torch.tensor([[5, 6, 7]])
    with pytest.raises(cf.CulnigError, match="with"):
        attributor.forward(tokens, torch.tensor([3]))
    with attributor:
        with pytest.raises(cf.CulnigError, match="in use"):
            attributor.__enter__()
        with pytest.raises(cf.CulnigError, match="1…3"):
            attributor.forward(tokens, torch.tensor([0]))
        with pytest.raises(cf.CulnigError, match="lengths"):
            attributor.forward(tokens, torch.tensor([3, 3]))
        with pytest.raises(cf.CulnigError, match="forward before"):
            attributor.backward(torch.zeros(1))
        logits = attributor.forward(tokens, torch.tensor([3]))
        with pytest.raises(cf.CulnigError, match="group number"):
            attributor.backward(logits[:, 0], group=torch.tensor([1]))
        with pytest.raises(cf.CulnigError, match=r"must be \[1\]"):
            attributor.backward(logits[0])


def test_bad_questions_are_refused_by_name() -> None:
    model = families.build("llama")
    bad = cf.Question("ten", "x", "w9 w10", "10")
    with pytest.raises(cf.CulnigError, match="ten"):
        cf.attribute(model, TOKENIZER, [*QUESTIONS, bad], progress=False)
    table = cf.attribute(model, TOKENIZER, [*QUESTIONS, bad], on_unusable="skip", progress=False)
    assert table.metadata["unusable"] == ["ten"]
    assert table.n_samples == len(QUESTIONS)
    with pytest.raises(cf.CulnigError, match="no questions"):
        cf.attribute(model, TOKENIZER, [], progress=False)
    with pytest.raises(cf.CulnigError, match="twice"):
        cf.attribute(model, TOKENIZER, [QUESTIONS[0], QUESTIONS[0]], progress=False)


def test_a_layer_of_nan_is_called_that() -> None:
    """Discovery looks at one layer of each kind; the other is looked at when it is to be fused."""
    model = families.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.gate_proj.weight[3, 3] = torch.nan
    with cf.Attributor(model) as attributor:
        assert attributor.fusion.layers == ()
        assert "NaN" in attributor.fusion.reasons[1]


def test_nan_weights_are_named() -> None:
    model = families.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(cf.CulnigError, match=r"q0.*nan|nan.*q0"):
        cf.attribute(model, TOKENIZER, QUESTIONS, progress=False)


@pytest.mark.parametrize("path", ["taps", "fused"])
def test_an_objective_of_an_earlier_forward_is_refused(path: str) -> None:
    """Its gradients would be reduced over the later batch's lengths."""
    model, ids = families.build("llama"), torch.arange(3, 15).view(2, 6)
    with cf.Attributor(model, path=path) as attributor:
        earlier = attributor.forward(ids, torch.tensor([6, 4]))
        attributor.forward(ids, torch.tensor([1, 1]))
        with pytest.raises(cf.CulnigError, match="earlier forward"):
            attributor.backward(earlier[:, 3])
        assert not attributor.totals.any()
        attributor.backward(attributor.forward(ids, torch.tensor([6, 4]))[:, 3])
        assert attributor.totals.any()


def test_one_site_may_be_named_by_itself() -> None:
    model, name = families.build("llama"), "mlp.gate_proj"
    expected = cf.attribute(model, TOKENIZER, QUESTIONS, sites=(name,), progress=False)
    assert np.array_equal(cf.attribute(model, TOKENIZER, QUESTIONS, sites=name, progress=False).totals, expected.totals)
    for sites in (name, iter([name])):  # an iterator ends when it has been read once
        assert cf.Attributor(model, sites=sites).layout == expected.layout
    assert (
        cf.count_activations(model, TOKENIZER, QUESTIONS, sites=iter([name]), progress=False).layout == expected.layout
    )
    assert cf.weight_norms(model, iter([name])).layout == expected.layout


def test_a_weight_that_is_nan_is_refused() -> None:
    model = families.build("llama")
    ids, lengths = torch.tensor([[9, 10, 11], [12, 13, 14]]), torch.tensor([3, 2])
    with cf.Attributor(model) as attributor:
        objective = attributor.forward(ids, lengths)[:, 5]
        with pytest.raises(cf.CulnigError, match="weight of sample 1 is NaN; give every sample a number"):
            attributor.backward(objective, weight=torch.tensor([1.0, float("nan")]))
        attributor.backward(objective, weight=torch.tensor([1.0, 2.0]))
    assert attributor.is_finite()
