"""Interventions: exact zeros, exact doubles, and baked weights that equal the hooks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3ForConditionalGeneration

import culnig_fast as cf
from culnig_fast.interleaved import places

ALL = {**families.LISTED, **families.UNLISTED}
TOKENS = torch.tensor([[9, 12, 30, 5, 22]])


def some_neurons(model: Any, count: int = 40) -> cf.NeuronSet:
    architecture = cf.discover(model)
    layout = architecture.layout(sorted({x.site.module_name for x in architecture.locations}))
    chosen = np.random.default_rng(0).choice(layout.size, count, replace=False)
    return cf.NeuronSet.from_flat(layout, chosen)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("family", ALL)
def test_suppressed_neurons_are_zero_and_others_are_not(family: str) -> None:
    model = families.build(family)
    neurons = some_neurons(model)
    architecture = cf.discover(model)
    seen: dict[tuple[str, int], torch.Tensor] = {}
    with cf.suppress(model, neurons):
        handles = []
        for location in architecture.locations:
            key = (location.site.module_name, location.site.layer_idx)

            def output(m: Any, a: Any, o: torch.Tensor, key: Any = key, columns: Any = location.columns) -> None:
                seen[key] = o[..., list(places(columns))]

            def given(m: Any, a: Any, key: Any = key) -> None:
                seen[key] = a[0]

            register = location.module.register_forward_hook
            handles.append(
                register(output) if location.tensor == "output" else location.module.register_forward_pre_hook(given)
            )
        logits_of(model)
        for handle in handles:
            handle.remove()
    chosen = {(n.module_name, n.layer_idx, n.neuron_idx) for n in neurons}
    for (name, layer), values in seen.items():
        for column in range(values.shape[-1]):
            is_zero = not values[..., column].any()
            assert is_zero == ((name, layer, column) in chosen) or name == "mlp.act", (name, layer, column)


@pytest.mark.parametrize("factor", [0.0, 2.0])
@pytest.mark.parametrize("family", ALL)
def test_baked_weights_give_the_hooks_logits_to_the_bit(family: str, factor: float) -> None:
    model = families.build(family)
    neurons = some_neurons(model)
    plain = logits_of(model)
    with cf.scaled(model, neurons, factor):
        hooked = logits_of(model)
    assert torch.equal(logits_of(model), plain)
    assert not torch.equal(hooked, plain)
    baked = cf.bake(model, neurons, factor)
    assert torch.equal(logits_of(baked), hooked)
    assert torch.equal(logits_of(model), plain)
    assert cf.bake(model, neurons, factor, in_place=True) is model
    assert torch.equal(logits_of(model), hooked)


@pytest.mark.parametrize("family", families.LISTED)
def test_a_saved_baked_model_reloads_with_plain_transformers(family: str, tmp_path: Path) -> None:
    model = families.build(family)
    neurons = some_neurons(model)
    with cf.suppress(model, neurons):
        hooked = logits_of(model)
    cf.bake(model, neurons).save_pretrained(tmp_path)
    loader = Gemma3ForConditionalGeneration if family == "gemma3_multimodal" else AutoModelForCausalLM
    assert torch.equal(logits_of(loader.from_pretrained(tmp_path).eval()), hooked)


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
@pytest.mark.parametrize(
    ("family", "site"), [("llama", "mlp.gate_proj"), ("llama", "mlp.act"), ("qwen3_moe", "mlp.experts.up_proj")]
)
def test_what_is_infinite_or_nan_is_silenced_too(family: str, site: str, broken: float) -> None:
    model = families.build(family)
    one = cf.NeuronSet((site,), [1], [7], [0.0])
    architecture = cf.discover(model)
    location = next(x for x in architecture.locations if (x.site.module_name, x.site.layer_idx) == (site, 1))
    with cf.suppress(model, one):
        expected = logits_of(model)
    with torch.no_grad():
        if location.experts is not None:
            next(iter(location.experts.rows(location.part, location.tensor)))[7] = broken
        elif location.tensor == "output":
            location.module.weight[7] = broken
        else:
            model.model.layers[1].mlp.up_proj.weight[7] = broken
    with cf.suppress(architecture, one):
        assert torch.equal(logits_of(model), expected)
    if location.experts is None:
        assert not logits_of(model).isfinite().all()
        parts = cf.ModuleNeurons.named([(location.module_path, 7 + (location.columns.start or 0), location.tensor)])
        with cf.suppress(model, parts):
            assert torch.equal(logits_of(model), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2_conv1d_fused", "qwen3_moe"])
def test_baking_takes_infinite_and_nan_weights_away(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.build(family)
    neurons = some_neurons(model)
    architecture = cf.discover(model)
    once, expected = copy.deepcopy(model), cf.bake(model, neurons)
    monkeypatch.setattr("culnig_fast.masking.discover", lambda given: architecture)
    with torch.no_grad():
        for (_, parameter), (_, changed) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
            parameter[parameter != changed] = float("nan")
    baked = cf.bake(model, neurons)
    assert not torch.equal(logits_of(model), logits_of(once))
    for (name, got), want in zip(baked.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(got, want), name


def test_enhance_doubles() -> None:
    model = families.build("llama")
    one = cf.NeuronSet(("mlp.gate_proj",), [1], [7], [0.0])
    seen: list[torch.Tensor] = []
    module = model.model.layers[1].mlp.gate_proj
    logits_before = logits_of(model)
    with cf.enhance(model, one):
        handle = module.register_forward_hook(lambda m, a, o: seen.append(o))
        logits_of(model)
        handle.remove()
    handle = module.register_forward_hook(lambda m, a, o: seen.append(o))
    assert torch.equal(logits_of(model), logits_before)
    handle.remove()
    assert torch.equal(seen[0][..., 7], 2 * seen[1][..., 7])


@pytest.mark.parametrize(
    ("neuron", "word"),
    [
        (("mlp.gate_proj", 2, 0), "layer 2"),
        (("mlp.gate_proj", 0, 48), "not 48"),
        (("self_attn.k_proj", 0, 16), "not 16"),
    ],
)
def test_a_neuron_that_the_model_lacks_is_refused_before_anything_is_hooked(
    neuron: tuple[str, int, int], word: str
) -> None:
    model = families.build("llama")
    bad = cf.NeuronSet(("mlp.gate_proj", neuron[0]), [0, neuron[1]], [0, neuron[2]], [0.0, 0.0])
    plain = logits_of(model)
    with pytest.raises(cf.CulnigError, match=word), cf.suppress(model, bad):
        pass
    with pytest.raises(cf.CulnigError, match=word):
        cf.bake(model, bad, in_place=True)
    assert torch.equal(logits_of(model), plain)


def test_hooks_are_gone_after_an_error_inside() -> None:
    model = families.build("phi3")
    with pytest.raises(RuntimeError, match="on purpose"), cf.suppress(model, some_neurons(model)):
        raise RuntimeError("on purpose")
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_shared_weights_are_not_baked() -> None:
    model = families.build("llama")
    layers = model.model.layers
    layers[0].mlp.gate_proj.weight = layers[1].mlp.gate_proj.weight
    with pytest.raises(cf.CulnigError, match="shares"):
        cf.bake(model, cf.NeuronSet(("mlp.gate_proj",), [0], [0], [0.0]))


def test_attribution_works_under_an_intervention() -> None:
    """A suppressed neuron's activation is 0, and so is its score."""
    from wordlevel import make_questions, make_tokenizer

    model = families.build("llama")
    neurons = some_neurons(model, 10).where(["mlp.gate_proj", "mlp.up_proj", "self_attn.q_proj"])
    with cf.suppress(model, neurons):
        table = cf.attribute(model, make_tokenizer(), make_questions(4), progress=False)
    assert not table.totals[:, neurons.flat(table.layout)].any()
    assert table.totals.any()
