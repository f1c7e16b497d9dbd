"""Counters against a plain run, one unpadded sample at a time, and LAPE against a plain NumPy version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import numpy as np
import oracle
import pytest
import torch
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.baselines.activations import ActivationTable, count_activations
from culnig_fast.baselines.entropy import activation_entropy, select_by_entropy
from culnig_fast.baselines.selecting import select_like
from culnig_fast.baselines.weights import weight_norms

TOKENIZER = make_tokenizer()
SITES = ("self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.act")


def plain_counters(model: Any, questions: list[cf.Question], sites: tuple[str, ...]) -> dict[str, np.ndarray]:
    groups = list(dict.fromkeys(question.group for question in questions))
    sums: dict[str, list[Any]] = {name: [0] * len(groups) for name in ("positive", "means", "magnitudes", "tokens")}
    for question in questions:
        kept, handles = oracle.activation_tensors(model)
        tokens = torch.tensor([TOKENIZER(question.prompt)["input_ids"]])
        model(input_ids=tokens).logits.sum().backward()
        parts = [
            oracle.columns_of(model, name, layer, kept)[0]
            for layer in range(len(oracle.decoder_layers(model)))
            for name in oracle.ORDER
            if name in sites
        ]
        for handle in handles:
            handle.remove()
        act = np.concatenate(parts, axis=1).astype(np.float64)
        row = groups.index(question.group)
        for name, value in (
            ("positive", (act > 0).sum(0)),
            ("means", act.mean(0)),
            ("magnitudes", np.abs(act).mean(0)),
            ("tokens", len(act)),
        ):
            sums[name][row] = sums[name][row] + value
    return {name: np.array(rows) for name, rows in sums.items()}


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3_multimodal"])
def test_counters_equal_a_plain_run(family: str) -> None:
    model, questions = families.build(family), make_questions(11)
    table = count_activations(model, TOKENIZER, questions, sites=SITES, batch_tokens=30, progress=False)
    want = plain_counters(model, questions, SITES)
    assert table.positive.dtype == np.int64
    # The sign of an activation within rounding of 0 may differ between a padded and a lone run.
    assert (table.positive != want["positive"]).mean() < 1e-3
    assert np.array_equal(table.tokens, want["tokens"])
    for name in ("means", "magnitudes"):
        np.testing.assert_allclose(getattr(table, name), want[name], atol=1e-5 * np.abs(want[name]).max())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_a_model_that_flattens_its_mlp_is_counted_too() -> None:
    model, questions = families.build("opt_plain"), make_questions(7)
    whole = count_activations(model, TOKENIZER, questions, batch_tokens=40, progress=False)
    alone = count_activations(model, TOKENIZER, questions, batch_tokens=1, progress=False)
    assert whole.layout.module_names == ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj")
    np.testing.assert_allclose(whole.means, alone.means, atol=1e-5 * np.abs(alone.means).max())
    assert np.abs(whole.positive - alone.positive).max() <= 1


def random_table(groups: int = 4, width: int = 500, seed: int = 0) -> ActivationTable:
    random = np.random.default_rng(seed)
    tokens = random.integers(50_000, 90_000, groups)  # so many that neighbouring probabilities differ
    # Skewed, so that some neurons are nearly one group's own; one is active nowhere.
    positive = np.minimum(tokens[:, None], (tokens[:, None] * random.random((groups, 2 * width)) ** 4).astype(int))
    positive[:, 3] = 0
    layout = cf.NeuronLayout([cf.NeuronSite("mlp.gate_proj", layer, width) for layer in (0, 1)])
    names = tuple(f"g{i}" for i in range(groups))
    sums = random.random(positive.shape)
    return ActivationTable(positive, sums - 0.5, sums, tokens, np.full(groups, 5), names, ("x",), layout)


def plain_lape(table: ActivationTable, share: float, percentile: float) -> tuple[list[int], dict[str, set[int]], float]:
    """LAPE in loops."""
    groups, neurons = table.positive.shape
    p = [[table.positive[g, n] / table.tokens[g] for n in range(neurons)] for g in range(groups)]
    values = sorted(value for row in p for value in row)
    bar = values[round(len(values) * percentile / 100) - 1]
    entropies = []
    for n in range(neurons):
        column = [p[g][n] for g in range(groups)]
        if max(column) <= bar:
            continue
        shares = [value / sum(column) for value in column]
        entropies.append((-sum(s * np.log(s) for s in shares if s > 0), n))
    chosen = [n for _, n in sorted(entropies)[: round(share * neurons)]]
    return chosen, {table.groups[g]: {n for n in chosen if p[g][n] > bar} for g in range(groups)}, bar


@pytest.mark.parametrize(("share", "percentile"), [(0.01, 95.0), (0.1, 95.0), (0.05, 80.0), (1.0, 99.0)])
def test_lape_equals_a_plain_version(share: float, percentile: float) -> None:
    table = random_table()
    found = select_by_entropy(table, share=share, percentile=percentile)
    chosen, by_group, bar = plain_lape(table, share, percentile)
    assert found.neurons.info["bar"] == bar
    assert len(chosen) > 0
    assert found.neurons.flat(table.layout).tolist() == chosen
    assert {name: set(part.flat(table.layout).tolist()) for name, part in found.by_group.items()} == by_group
    assert set().union(*by_group.values()) == set(chosen)
    assert (np.diff(found.neurons.scores) <= 0).all()


def test_entropy_of_known_distributions() -> None:
    probability = np.array([[0.5, 0.9, 0.0, 0.1], [0.5, 0.0, 0.0, 0.3]])
    expected = [np.log(2), 0, 0, -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))]
    np.testing.assert_allclose(activation_entropy(probability), expected, atol=1e-15)


def test_cape_leaves_out_what_languages_chose() -> None:
    table = random_table()
    languages = select_by_entropy(table.merged({"one": ["g0", "g1"]}), share=0.02)
    assert list(languages.by_group) == ["one", "g2", "g3"]
    cultures = select_by_entropy(table, share=0.02, exclude=languages.neurons, method="cape")
    assert not set(cultures.neurons.flat(table.layout)) & set(languages.neurons.flat(table.layout))
    without = select_by_entropy(table, share=0.02).neurons
    assert set(without.flat(table.layout)) & set(languages.neurons.flat(table.layout))
    assert cultures.neurons.info["selection"] == "cape"


def test_merged_groups_add_up() -> None:
    table = random_table()
    merged = table.merged({"ab": ["g0", "g2"]})
    assert merged.groups == ("ab", "g1", "g3")
    assert np.array_equal(merged.positive[0], table.positive[0] + table.positive[2])
    assert merged.tokens.tolist() == [table.tokens[0] + table.tokens[2], table.tokens[1], table.tokens[3]]
    for parts, word in (({"x": ["no"]}, "no group"), ({"x": ["g0"], "y": ["g0"]}, "two merged")):
        with pytest.raises(cf.CulnigError, match=word):
            table.merged(parts)


def test_mean_activation_and_weight_norm_fill_sets_of_the_same_size() -> None:
    model = families.build("phi3")
    table = count_activations(model, TOKENIZER, make_questions(6), progress=False).scores()
    like = cf.select_random(table.layout, 20, seed=1)
    mean = table.totals.sum(0) / table.n_samples
    chosen = select_like(table, like)
    for pool in (["mlp.gate_proj"], ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]):
        indices = table.layout.indices(pool)
        best = indices[np.argsort(-mean[indices], kind="stable")[: len(like.where(pool))]]
        assert set(chosen.where(pool).flat(table.layout)) == set(best)
    norms = weight_norms(model, ("self_attn.k_proj", "mlp.up_proj", "mlp.act"))
    mlp, attention = model.model.layers[1].mlp, model.model.layers[1].self_attn
    for name, weight in (
        ("mlp.up_proj", mlp.gate_up_proj.weight[48:]),
        ("mlp.act", mlp.down_proj.weight.T),
        ("self_attn.k_proj", attention.qkv_proj.weight[32:48]),
    ):
        want = np.sqrt((weight.detach().double().numpy() ** 2).sum(1))
        np.testing.assert_allclose(norms.totals[0, norms.layout.slice(name, 1)], want, rtol=1e-12)
    conv = families.build("gpt2_conv1d_fused")
    own = weight_norms(conv, ("mlp.up_proj",))
    want = conv.transformer.h[0].mlp.c_fc.weight.detach().double().norm(dim=0).numpy()
    np.testing.assert_allclose(own.totals[0, own.layout.slice("mlp.up_proj", 0)], want, rtol=1e-12)
    heads = families.build("gpt_neox_head_after_head")
    own = weight_norms(heads, ("self_attn.k_proj",))
    weight = heads.gpt_neox.layers[1].attention.query_key_value.weight.detach().double()
    want = weight.view(4, 3, 8, 32)[:, 1].reshape(32, 32).norm(dim=1).numpy()
    np.testing.assert_allclose(own.totals[0, own.layout.slice("self_attn.k_proj", 1)], want, rtol=1e-12)


def test_files_come_back_equal_and_others_are_refused(tmp_path: Path) -> None:
    table = random_table()
    table.save(tmp_path / "a.safetensors")
    back = ActivationTable.load(tmp_path / "a.safetensors")
    for name in ("positive", "means", "magnitudes", "tokens", "counts"):
        assert np.array_equal(getattr(back, name), getattr(table, name)), name
    assert (back.groups, back.layout) == (table.groups, table.layout)
    with pytest.raises(cf.CulnigError, match="exists already"):
        table.save(tmp_path / "a.safetensors")
    table.scores().save(tmp_path / "scores.safetensors")
    with pytest.raises(cf.CulnigError, match="baseline activations"):
        ActivationTable.load(tmp_path / "scores.safetensors")


def test_bad_choices_are_refused() -> None:
    table = random_table()
    for options, word in (({"share": 2.0}, "share"), ({"percentile": 0.0}, "percentile")):
        with pytest.raises(cf.CulnigError, match=word):
            select_by_entropy(table, **options)
    with pytest.raises(cf.CulnigError, match="two groups"):
        select_by_entropy(table.merged({"all": table.groups}))
    model = families.build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[5, 0] = torch.nan
    with pytest.raises(cf.CulnigError, match="neuron 5 of mlp.up_proj in layer 1"):
        count_activations(model, TOKENIZER, make_questions(3), sites=["mlp.up_proj"], progress=False)
