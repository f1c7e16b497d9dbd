"""Mixtures of experts: the engine against loops in float64, absence, interventions, and what is refused."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import families
import moe_oracle
import numpy as np
import pytest
import torch
from listed_mixture import as_list
from torch import nn
from transformers import AutoModelForCausalLM
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.mixtures.listed import matching_rows
from culnig_fast.mixtures.probe import gate_and_up

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(9, groups=2, longest=6)
EVERY = (*moe_oracle.ATTENTION, *moe_oracle.SHARED, *moe_oracle.EXPERTS)
TOKENS = torch.tensor([[9, 12, 30, 5, 22], [8, 40, 41, 8, 8]])


def samples_of(questions: list[Any]) -> list[tuple[list[int], int, int]]:
    groups = list(dict.fromkeys(q.group for q in questions))
    encode = TOKENIZER.convert_tokens_to_ids
    return [(TOKENIZER(q.prompt)["input_ids"], encode(q.answer), groups.index(q.group)) for q in questions]


def sites_of(model: Any) -> list[str]:
    return [name for name in EVERY if "shared" not in name or hasattr(model.model.layers[0].mlp, "shared_expert")]


def attributed(model: Any, questions: Any = QUESTIONS, **options: Any) -> Any:
    options = {"sites": sites_of(model), "batch_tokens": 20, "progress": False, **options}
    return cf.attribute(model, TOKENIZER, questions, **options)


def worst(got: np.ndarray, want: np.ndarray, layout: Any) -> float:
    """The largest error of a site as a share of its largest score."""
    errors = []
    for site in layout.sites:
        where = layout.slice(site.module_name, site.layer_idx)
        scale = np.abs(want[:, where]).max()
        assert scale > 0, f"nothing is scored at {site}"
        errors.append(np.abs(got[:, where] - want[:, where]).max() / scale)
    return float(max(errors))


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def some_neurons(model: Any, count: int = 60) -> cf.NeuronSet:
    layout = cf.discover(model).layout(sites_of(model))
    return cf.NeuronSet.from_flat(layout, np.random.default_rng(0).choice(layout.size, count, replace=False))


# These models' norms and routers round to float32 whatever they hold, so float64 is held to a few float32 roundings.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("reduction", ["max", "sum"])
@pytest.mark.parametrize("family", families.MIXTURES)
def test_totals_equal_the_oracle(family: str, reduction: str, dtype: torch.dtype, tolerance: float) -> None:
    model = families.build(family, dtype)
    table = attributed(model, reduction=reduction)
    expected = moe_oracle.totals(model, samples_of(QUESTIONS), 2, sites_of(model), reduction)
    assert worst(table.totals, expected, table.layout) <= tolerance


@pytest.mark.parametrize("family", families.MIXTURES)
def test_the_oracle_computes_what_the_model_does(family: str) -> None:
    model = families.build(family, torch.float64)
    plain = logits_of(model)
    with moe_oracle.written_out(model), torch.enable_grad():
        written = model(input_ids=TOKENS).logits
    assert torch.allclose(written, plain, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_a_token_that_was_not_routed_to_an_expert_is_absent_and_not_zero(family: str) -> None:
    model = families.build(family, torch.float64)
    tokens, answer = [9, 12, 30, 5], 6
    _, scores, reached = moe_oracle.sample_scores(
        copy.deepcopy(model).requires_grad_(True), tokens, answer, sites_of(model), "max"
    )
    with cf.Attributor(model, sites=sites_of(model)) as attributor:
        # Pads are routed too, here and there, and must not count as visits.
        logits = attributor.forward(torch.tensor([[*tokens, 0, 0, 33]]), torch.tensor([4]))
        probability = torch.softmax(logits, -1)[:, answer]
        attributor.backward(probability)
    got, layout = attributor.totals[0].numpy(), attributor.layout
    assert np.abs(got - scores).max() <= 1e-11 * np.abs(scores).max()
    experts, _ = layout.expert_of(np.arange(layout.size))
    _, layers, _ = layout.locate(np.arange(layout.size))
    absent = np.array([e >= 0 and (layer, e) not in reached for e, layer in zip(experts, layers, strict=True)])
    assert absent.any()
    assert not got[absent].any()
    # Some neuron of an expert that saw part of the tokens is below 0: with absence as 0 its maximum would be 0.
    assert (got[(experts >= 0) & ~absent] < 0).any()
    assert not np.isnan(got).any()


@pytest.mark.parametrize("family", families.MIXTURES)
def test_a_score_depends_on_its_sample_alone(family: str) -> None:
    model = families.build(family, torch.float64)
    together = attributed(model, batch_tokens=1000)
    alone = attributed(model, batch_size=1)
    assert worst(together.totals, alone.totals, together.layout) <= 1e-12
    repeated = attributed(model, recompute=True, batch_tokens=1000)
    assert np.array_equal(repeated.totals, together.totals)


@pytest.mark.parametrize("reduction", ["max", "sum"])
def test_kernels_score_experts_as_plain_torch_does(reduction: str) -> None:
    model = families.build("qwen3_moe")
    few = QUESTIONS[:3]
    plain = attributed(model, few, backend="reference", reduction=reduction)
    for backend in ("triton", "auto"):
        table = attributed(model, few, backend=backend, reduction=reduction)
        assert worst(table.totals, plain.totals, plain.layout) <= 1e-6


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_the_models_own_way_to_run_experts_does_not_matter(implementation: str) -> None:
    model = families.build("gpt_oss")
    expected = attributed(model).totals
    model.set_experts_implementation(implementation)
    assert model.model.layers[0].mlp.experts.config._experts_implementation == implementation
    assert np.array_equal(attributed(model).totals, expected)


def test_experts_in_a_list_score_as_fused_ones() -> None:
    fused = families.build("mixtral", torch.float64)
    listed = as_list(fused)
    assert torch.allclose(logits_of(listed), logits_of(fused), rtol=1e-9, atol=1e-10)
    # The same question twice: equal rows in one batch must each find their own gradient.
    again = [cf.Question(f"again {q.id}", "other", q.prompt, "A") for q in QUESTIONS[:5]]
    for reduction in ("max", "sum"):
        want = attributed(fused, [*QUESTIONS, *again], reduction=reduction, batch_tokens=1000)
        got = attributed(listed, [*QUESTIONS, *again], reduction=reduction, batch_tokens=1000)
        assert got.layout == want.layout
        assert worst(got.totals, want.totals, want.layout) <= 1e-11
    neurons = some_neurons(listed)
    with cf.suppress(fused, neurons):
        suppressed = logits_of(fused)
    with cf.suppress(listed, neurons):
        assert torch.allclose(logits_of(listed), suppressed, rtol=1e-9, atol=1e-10)
        hooked = logits_of(listed)
        inside = attributed(listed)
    baked = cf.bake(listed, neurons)
    assert torch.equal(logits_of(baked), hooked)
    assert worst(inside.totals, attributed(baked).totals, inside.layout) <= 1e-11
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in listed.modules())


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


def test_one_question_at_a_time_is_watched_and_diagnosed() -> None:
    model = families.build("mixtral")
    experts = cf.discover(model).layout(["mlp.experts.gate_proj"])
    watch = cf.NeuronSet.from_flat(experts, [3, 60, 200])
    with cf.Attributor(model, watch=watch) as attributor:
        logits = attributor.forward(TOKENS, torch.tensor([5, 3]))
        attributor.backward(logits[:, 5])
        assert attributor.watched is not None
        assert torch.allclose(attributor.watched.sum(0).double(), attributor.totals[0, watch.flat(attributor.layout)])
    broken = TOKENIZER(QUESTIONS[1].prompt)["input_ids"][0]
    with torch.no_grad():
        model.model.embed_tokens.weight[broken] = torch.nan
    with pytest.raises(cf.CulnigError, match=r"q1.*neuron \d+ of mlp\.experts\.up_proj in layer 0 is nan"):
        attributed(model, QUESTIONS[:2], sites=["mlp.experts.up_proj"])


def test_fused_layers_are_refused_with_the_reason() -> None:
    model = families.build("mixtral")
    with pytest.raises(cf.CulnigError, match="its MLP is a mixture of experts"), cf.Attributor(model, path="fused"):
        pass
    assert attributed(model).metadata["fusion"]["taps"] == {"its MLP is a mixture of experts": [0, 1]}


def test_what_does_not_know_experts_refuses_them_and_names_the_remedy() -> None:
    model = families.build("mixtral")
    with pytest.raises(cf.CulnigError, match=r"mlp\.experts\.gate_proj.*sites"):
        cf.weight_norms(model)
    with pytest.raises(cf.CulnigError, match=r"mlp\.experts"):
        cf.count_activations(model, TOKENIZER, QUESTIONS, progress=False)
    with pytest.raises(cf.CulnigError, match=r"mlp\.experts"):
        cf.find_modules(model)
    assert cf.weight_norms(model, sites=moe_oracle.ATTENTION).layout.size == 2 * 64


def test_streaming_refuses_mixtures(tmp_path: Path) -> None:
    families.build("mixtral").save_pretrained(tmp_path)
    with pytest.raises(cf.CulnigError, match=r"mlp\.experts.*cannot be streamed.*device_map"):
        cf.attribute_streamed(tmp_path, TOKENIZER, QUESTIONS[:2], progress=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", families.MIXTURES)
def test_what_is_found_does_not_depend_on_the_dtype(family: str, dtype: torch.dtype) -> None:
    model = families.build(family, dtype)
    found, expected = (cf.discover(m).locations for m in (model, families.build(family)))
    assert [(x.site, x.module_path, x.part, x.columns) for x in found] == [
        (x.site, x.module_path, x.part, x.columns) for x in expected
    ]
    assert np.isfinite(attributed(model, QUESTIONS[:2]).totals).all()


def test_dense_layers_of_a_mixture_run_fused_beside_experts() -> None:
    model = families.build("qwen3_moe_dense_first")
    options = {"sites": None, "batch_tokens": 20}
    fused, taps = (attributed(model, path=path, **options) for path in ("auto", "taps"))
    assert fused.metadata["fusion"]["fused"] == [0]
    assert fused.layout.module_names[-4:] == (
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.experts.gate_proj",
        "mlp.experts.up_proj",
    )
    assert worst(fused.totals, taps.totals, taps.layout) <= 1e-5
    general = cf.select_general(fused, None, None, mlp_share=0.2, attention_share=0.0)
    assert set(general.module_names) == {"mlp.gate_proj", "mlp.experts.gate_proj"}


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


def test_what_means_nothing_for_routed_experts_is_refused() -> None:
    model = families.build("qwen3_moe")
    with pytest.raises(cf.CulnigError, match="'last'"):
        cf.Attributor(model, reduction="last")
    cf.Attributor(model, reduction="last", sites=("self_attn.q_proj",))
    tokens, lengths = torch.tensor([[3, 4, 5]]), torch.tensor([3])
    with cf.Attributor(model) as attributor, pytest.raises(cf.CulnigError, match="positions"):
        attributor.forward(tokens, lengths, positions=torch.tensor([[True, False, True]]))


@pytest.mark.parametrize("reduction", ["mean", "absmax"])
def test_further_reductions_are_over_the_tokens_that_reached_an_expert(reduction: str) -> None:
    """One sample; every expert's rows by its own routing, from the totals of the sum and of the maximum of ±."""
    model = families.build("mixtral", torch.float64)
    tokens, lengths = torch.tensor([[3, 4, 5, 6, 7]]), torch.tensor([5])

    def totals(how: str, sign: float = 1.0) -> np.ndarray:
        with cf.Attributor(model, sites=("mlp.experts.gate_proj",), reduction=how) as attributor:
            logits = attributor.forward(tokens, lengths)
            attributor.backward(sign * logits[:, 5].double())
            return attributor.totals[0].numpy()

    found = totals(reduction)
    if reduction == "absmax":
        np.testing.assert_allclose(found, np.maximum(totals("max"), totals("max", -1.0)), rtol=1e-9, atol=1e-15)
        return
    summed, reached = totals("sum"), totals("absmax") > 0
    counts = np.round(summed[reached] / found[reached])
    assert ((counts >= 1) & (counts <= 5)).all() and len(set(counts.tolist())) > 1
    np.testing.assert_allclose(found[reached] * counts, summed[reached], rtol=1e-9)
