"""Neurons of mixtures suppressed, enhanced and baked: by the families' own layouts, and back again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import families
import moe_oracle
import numpy as np
import pytest
import torch
from moe_checks import QUESTIONS, TOKENIZER, attributed, logits_of, sites_of, some_neurons, worst
from transformers import AutoModelForCausalLM

import culnig_fast as cf


@pytest.mark.parametrize("factor", [0.0, 2.0])
@pytest.mark.parametrize("family", families.MIXTURES)
def test_interventions_multiply_the_named_neurons_of_the_named_experts(family: str, factor: float) -> None:
    model = families.build(family, torch.float64)
    neurons, plain = some_neurons(model), logits_of(model)
    by_hand = copy.deepcopy(model)
    layout = cf.discover(model).layout(sites_of(model))
    experts, columns = layout.expert_of(neurons.flat(layout))
    for neuron, expert, column in zip(neurons, experts.tolist(), columns.tolist(), strict=True):
        scale_by_hand(by_hand, neuron, expert, column, factor)
    with cf.scaled(model, neurons, factor):
        hooked = logits_of(model)
    baked = cf.bake(model, neurons, factor)
    for (name, got), want in zip(baked.named_parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(got, want), name
    assert torch.allclose(logits_of(baked), hooked, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(hooked, plain, rtol=1e-3)
    assert torch.equal(logits_of(model), plain)


@torch.no_grad()
def scale_by_hand(model: Any, neuron: Any, expert: int, column: int, factor: float) -> None:
    """The neuron's row of its weight, by the family's own layout."""
    layer = model.model.layers[neuron.layer_idx]
    *parents, part = neuron.module_name.split(".")
    if expert < 0:
        owner = layer.get_submodule(".".join(parents))
        if part == "act":
            owner.down_proj.weight[:, column] *= factor
            return
        projection = getattr(owner, part)
        projection.weight[column] *= factor
        if projection.bias is not None:
            projection.bias[column] *= factor
        return
    held = layer.mlp.experts
    if type(held).__name__ != "GptOssExperts":
        width = held.down_proj.shape[2]
        if part == "act":
            held.down_proj[expert, :, column] *= factor
        else:
            held.gate_up_proj[expert, column + (width if part == "up_proj" else 0)] *= factor
    elif part == "act":
        held.down_proj[expert, column] *= factor
    else:
        place = 2 * column + (part == "up_proj")
        held.gate_up_proj[expert, :, place] *= factor
        held.gate_up_proj_bias[expert, place] *= factor


@pytest.mark.parametrize("family", families.MIXTURES)
def test_suppressed_neurons_score_nothing_and_the_model_is_left_as_it_was(family: str) -> None:
    model = families.build(family, torch.float64)
    bits = {name: value.clone() for name, value in model.state_dict().items()}
    neurons = some_neurons(model)
    with cf.suppress(model, neurons):
        table = attributed(model)
        assert "forward" in vars(model.model.layers[0].mlp.experts)
    baked = attributed(cf.bake(model, neurons))
    assert worst(table.totals, baked.totals, table.layout) <= 1e-11
    assert not table.totals[:, neurons.flat(table.layout)].any()
    with pytest.raises(RuntimeError, match="on purpose"), cf.Attributor(model):
        raise RuntimeError("on purpose")
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(torch.equal(value, bits[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_from_table_to_set_to_checkpoint(family: str, tmp_path: Path) -> None:
    model = families.build(family)
    table = cf.attribute(model, TOKENIZER, QUESTIONS, progress=False)
    table.save(tmp_path / "scores.safetensors")
    loaded = cf.ScoreTable.load(tmp_path / "scores.safetensors")
    assert loaded.layout == table.layout
    assert np.array_equal(loaded.totals, table.totals)
    assert {s.experts for s in loaded.layout.sites} == {1, model.model.layers[0].mlp.experts.down_proj.shape[0]}
    general = cf.select_general(loaded, None, None, mlp_share=0.05, attention_share=0.05)
    assert "mlp.experts.gate_proj" in general.module_names
    assert "mlp.experts.up_proj" not in general.module_names
    general.save(tmp_path / "general.json")
    again = cf.NeuronSet.load(tmp_path / "general.json")
    assert again == general
    width = again.info["expert_width"]["mlp.experts.gate_proj"]
    experts, columns = loaded.layout.expert_of(again.flat(loaded.layout))
    for neuron, expert, column in zip(again, experts, columns, strict=True):
        if neuron.module_name in moe_oracle.EXPERTS:
            assert (expert, column) == divmod(neuron.neuron_idx, width)
            assert loaded.layout.flat(neuron.module_name, neuron.layer_idx, column, expert) == loaded.layout.flat(
                neuron.module_name, neuron.layer_idx, neuron.neuron_idx
            )
        else:
            assert (expert, column) == (-1, neuron.neuron_idx)
    baked = cf.bake(model, again)
    baked.save_pretrained(tmp_path / "baked")
    reread = AutoModelForCausalLM.from_pretrained(tmp_path / "baked").eval()
    assert torch.equal(logits_of(reread), logits_of(baked))
    with cf.suppress(model, again):
        assert torch.allclose(logits_of(model), logits_of(baked), rtol=1e-4, atol=1e-4)
