"""What is found of a mixture, what is refused, and how its neurons are named."""

from __future__ import annotations

import re
from typing import Any

import families
import numpy as np
import pytest
import torch
from listed_mixture import as_list
from moe_checks import QUESTIONS, attributed
from torch import nn
from transformers import AutoModelForCausalLM

import culnig_fast as cf
from culnig_fast.mixtures.listed import matching_rows
from culnig_fast.mixtures.probe import gate_and_up


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", families.MIXTURES)
def test_what_is_found_does_not_depend_on_the_dtype(family: str, dtype: torch.dtype) -> None:
    model = families.build(family, dtype)
    found, expected = (cf.discover(m).locations for m in (model, families.build(family)))
    assert [(x.site, x.module_path, x.part, x.columns) for x in found] == [
        (x.site, x.module_path, x.part, x.columns) for x in expected
    ]
    assert np.isfinite(attributed(model, QUESTIONS[:2]).totals).all()


def mixed_columns(self: Any, gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return self.act_fn(gate) * up.roll(1, -1)


def two_gates(self: Any, gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return self.act_fn(gate) * self.act_fn(up)


@pytest.mark.parametrize("apply", [mixed_columns, two_gates])
def test_a_gate_that_is_not_understood_is_refused(apply: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.build("mixtral")
    monkeypatch.setattr(type(model.model.layers[0].mlp.experts), "_apply_gate", apply)
    with pytest.raises(cf.CulnigError, match=r"layer 0 .*mlp\.experts.*gate_up_proj \[4, 96, 32\]"):
        cf.discover(model)


def test_experts_that_compute_something_else_are_refused() -> None:
    model = families.build("qwen3_moe")
    held = model.model.layers[1].mlp.experts
    held.forward = lambda *args: 1.01 * type(held).forward(held, *args)
    with pytest.raises(cf.CulnigError, match="layer 1 .*something else"):
        cf.discover(model)


@pytest.mark.parametrize("where", ["mlp.experts", "mlp", "self_attn"])
def test_a_weight_more_is_not_left_out_silently(where: str) -> None:
    model = families.build("qwen3_moe")
    model.model.layers[1].get_submodule(where).extra = nn.Parameter(torch.zeros(32, 32))
    with pytest.raises(cf.CulnigError, match=re.escape("extra [32, 32]") if where != "mlp.experts" else "mlp.experts"):
        cf.discover(model)


def test_a_shared_expert_as_narrow_as_there_are_experts_is_no_router() -> None:
    config = families.MIXTURES["qwen2_moe"]()
    config.shared_expert_intermediate_size = config.num_experts
    torch.manual_seed(0)
    names = cf.discover(AutoModelForCausalLM.from_config(config).eval()).layout().module_names
    assert {"mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"} <= set(names)


def test_listed_experts_that_differ_or_hide_their_tokens_are_refused() -> None:
    model = as_list(families.build("mixtral"))
    model.model.layers[1].mlp.experts[2].w2 = nn.Linear(48, 32, bias=True)
    model.model.layers[1].mlp.experts[2].extra = nn.Linear(4, 4)
    with pytest.raises(cf.CulnigError, match=r"layer 1 .*not alike"):
        cf.discover(model)
    model = as_list(families.build("mixtral"))
    model.model.layers[0].mlp.disguise = lambda rows: rows * 1.5
    with pytest.raises(cf.CulnigError, match=r"layer 0 .*cannot be told"):
        cf.discover(model)


def test_rows_are_found_again() -> None:
    tokens = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [0.0, 5.0]])
    assert matching_rows(tokens, tokens[[3, 0, 2]]).tolist() == [3, 0, 2]
    assert matching_rows(tokens, tokens[[0, 1, 2, 3]]).tolist() == [0, 1, 2, 3]
    assert matching_rows(tokens, tokens[:0]).tolist() == []
    for stranger in (tokens[[0]], tokens[[1]] + 1, tokens[[0, 1]]):  # one of two equal rows; no row of it; both
        with pytest.raises(cf.CulnigError, match="cannot be told"):
            matching_rows(tokens, stranger)
    many = torch.randn(50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(torch.bfloat16)
    rows = torch.randperm(50, generator=torch.Generator().manual_seed(1))[:20]
    assert matching_rows(many, many[rows]).tolist() == rows.tolist()


def test_gate_and_up_are_told_by_what_they_do() -> None:
    silu = nn.functional.silu
    cpu = torch.device("cpu")
    halves = ((0, 12, 1), (12, 24, 1))
    assert gate_and_up(lambda x: silu(x[:, :12]) * x[:, 12:], 12, cpu) == halves
    assert gate_and_up(lambda x: x[:, :12] * silu(x[:, 12:]), 12, cpu) == halves[::-1]
    assert gate_and_up(lambda x: x[:, 1::2] * silu(x[:, ::2]), 12, cpu) == ((0, 24, 2), (1, 24, 2))
    assert gate_and_up(lambda x: x[:, :12] * x[:, 12:], 12, cpu) is None
    assert gate_and_up(lambda x: silu(x[:, :12]), 12, cpu) is None


def test_layouts_of_experts() -> None:
    dense = cf.NeuronSite("mlp.gate_proj", 0, 8)
    routed = cf.NeuronSite("mlp.experts.gate_proj", 1, 12, 3)
    layout = cf.NeuronLayout([routed, dense])
    assert layout.to_dict() == {"sites": [["mlp.gate_proj", 0, 8], ["mlp.experts.gate_proj", 1, 12, 3]]}
    assert cf.NeuronLayout.from_dict(layout.to_dict()) == layout
    experts, columns = layout.expert_of([7, 8, 13, 19])
    assert (experts.tolist(), columns.tolist()) == ([-1, 0, 1, 2], [7, 0, 1, 3])
    assert layout.flat("mlp.experts.gate_proj", 1, 1, expert=1) == 13
    for expert, column in ((3, 0), (-1, 0), (0, 4)):
        with pytest.raises(cf.CulnigError, match="experts 0…2 of 4 neurons"):
            layout.flat("mlp.experts.gate_proj", 1, column, expert=expert)
    assert layout.difference(cf.NeuronLayout([cf.NeuronSite("mlp.experts.gate_proj", 1, 12, 4), dense])) is not None
    for site in (cf.NeuronSite("mlp.experts.gate_proj", 0, 12, 5), cf.NeuronSite("mlp.gate_proj", 0, 12, 3)):
        with pytest.raises(cf.CulnigError, match="experts"):
            cf.NeuronLayout([site])
    assert "expert_width" not in cf.NeuronSet.from_flat(layout, [1, 2]).info
