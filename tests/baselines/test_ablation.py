"""Brute force against suppressing one neuron at a time; integrated gradients are complete and meet first order."""

from __future__ import annotations

from typing import Any

import families
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.baselines.ablation import ablate, agreement, scores_of
from culnig_fast.baselines.path import integrated_gradients

TOKENIZER = make_tokenizer()


def every_kind(model: Any, count: int = 12) -> cf.NeuronSet:
    architecture = cf.discover(model)
    layout = architecture.layout(sorted({x.site.module_name for x in architecture.locations}))
    chosen = [layout.flat(s.module_name, s.layer_idx, s.width - 1) for s in layout.sites][:count]
    drawn = np.random.default_rng(1).permutation(np.setdiff1d(np.arange(layout.size), chosen))[:5]
    return cf.NeuronSet.from_flat(layout, [*chosen, *drawn])


@pytest.mark.parametrize(
    "family", ["llama", "phi3", "gemma2", "opt_plain", "gpt2_conv1d_fused", "gpt_neox_head_after_head"]
)
def test_it_equals_suppressing_one_neuron_at_a_time(family: str) -> None:
    model, questions = families.build(family), make_questions(7, groups=2)
    neurons = every_kind(model)
    found = ablate(model, TOKENIZER, questions, neurons, batch_tokens=90, progress=False)
    plain = cf.evaluate(model, TOKENIZER, questions, progress=False).probability
    row = np.array([found.groups.index(question.group) for question in questions])
    want = np.zeros_like(found.effects)
    for column, neuron in enumerate(neurons):
        one = cf.NeuronSet((neuron.module_name,), [neuron.layer_idx], [neuron.neuron_idx], [0.0])
        with cf.suppress(model, one):
            without = cf.evaluate(model, TOKENIZER, questions, progress=False).probability
        np.add.at(want[:, column], row, plain * (plain - without))
    # P is known to a few float32 roundings (relative 1e-7 each), so an effect is known to that part of Σ P².
    tolerance = 2e-6 * (plain**2).sum()
    assert np.abs(want).max() > 100 * tolerance
    np.testing.assert_allclose(found.effects, want, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.probability, np.bincount(row, plain), rtol=1e-5)
    np.testing.assert_array_equal(found.neurons.scores, found.total)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_agreement_is_scipys_rank_correlation() -> None:
    random = np.random.default_rng(0)
    effects = random.normal(size=60)
    scores = np.round(effects + random.normal(size=60), 1)  # with ties
    found = agreement(scores, effects, 6)
    assert found.spearman == pytest.approx(spearmanr(scores, effects).statistic, abs=1e-12)
    best = set(np.argsort(-scores, kind="stable")[:6]) & set(np.argsort(-effects, kind="stable")[:6])
    assert found.overlap == len(best) / 6
    assert agreement(np.zeros(60), effects, 6).spearman is None
    with pytest.raises(cf.CulnigError, match="top 61"):
        agreement(scores, effects, 61)


@pytest.mark.parametrize("family", ["llama", "phi3", "falcon_group_after_group"])
def test_the_path_is_complete(family: str) -> None:
    """Σ over neurons and positions of a site's IG = P(full) − P(site zeroed), and the error falls as 1/m²."""
    model, questions = families.build(family, torch.float64), make_questions(4, groups=4)
    whole = cf.evaluate(model, TOKENIZER, questions, progress=False).probability
    errors, share = {}, 0.0
    for steps in (64, 256):
        options = {"steps": steps, "weighted": False, "batch_tokens": 1000, "progress": False}
        table = integrated_gradients(model, TOKENIZER, questions, **options)
        assert table.groups == tuple(question.group for question in questions)
        worst = 0.0
        for site in table.layout.sites:
            where = table.layout.slice(site.module_name, site.layer_idx)
            with cf.suppress(model, cf.NeuronSet.from_flat(table.layout, np.arange(where.start, where.stop))):
                zeroed = cf.evaluate(model, TOKENIZER, questions, progress=False).probability
            worst = max(worst, np.abs(table.totals[:, where].sum(1) - (whole - zeroed)).max())
            share = max(share, np.abs(whole - zeroed).max())
        errors[steps] = worst
    assert errors[256] < 1e-3 * share
    assert errors[256] < errors[64] / 12  # 16 but for terms of higher order


def test_one_site_against_a_plain_loop() -> None:
    """One sample at a time: P(α) differentiated with respect to the gate's output itself, at every midpoint."""
    model, questions = families.build("llama", torch.float64), make_questions(5)
    tables = {
        reduction: integrated_gradients(
            model, TOKENIZER, questions, steps=3, sites=["mlp.gate_proj"], reduction=reduction, progress=False
        )
        for reduction in ("sum", "max")
    }
    gate = model.model.layers[0].mlp.gate_proj
    want = {"sum": np.zeros((3, 48)), "max": np.zeros((3, 48))}
    for question in questions:
        tokens = torch.tensor([TOKENIZER(question.prompt)["input_ids"]])
        gold = TOKENIZER.convert_tokens_to_ids(question.answer)
        values, p = 0, torch.softmax(model(input_ids=tokens).logits[0, -1], 0)[gold].item()
        for alpha in (1 / 6, 3 / 6, 5 / 6):
            seen: list[Any] = []

            def scale(module: Any, args: Any, output: Any, alpha: float = alpha, seen: list[Any] = seen) -> Any:
                seen.extend([output.detach(), (alpha * output.detach()).requires_grad_(True)])
                return seen[1]

            handle = gate.register_forward_hook(scale)
            torch.softmax(model(input_ids=tokens).logits[0, -1], 0)[gold].backward()
            handle.remove()
            values = values + (seen[0] * seen[1].grad / 3)[0].numpy()
        row = tables["sum"].groups.index(question.group)
        want["sum"][row] += p * values.sum(0)
        want["max"][row] += p * values.max(0)
    for reduction, table in tables.items():
        found = table.totals[:, table.layout.slice("mlp.gate_proj", 0)]
        # The norms of the library work in float32 whatever the model holds.
        np.testing.assert_allclose(found, want[reduction], rtol=0, atol=1e-6 * np.abs(want[reduction]).max())


def test_first_order_foretells_brute_force_and_is_the_path_where_p_is_linear() -> None:
    model, questions = families.build("llama"), make_questions(24, groups=1)
    layout = cf.discover(model).layout(["mlp.up_proj"])
    neurons = cf.NeuronSet.from_flat(layout, np.arange(layout.size))
    truth = ablate(model, TOKENIZER, questions, neurons, progress=False)
    first = cf.attribute(model, TOKENIZER, questions, sites=["mlp.up_proj"], reduction="sum", progress=False)
    assert agreement(scores_of(first, neurons), truth.total, 10).spearman > 0.5
    # A site that P depends on almost linearly: shrink the second layer's output, and both agree.
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight *= 1e-3
    options = {"sites": ["mlp.up_proj"], "reduction": "sum", "progress": False}
    first = cf.attribute(model, TOKENIZER, questions, **options)
    along = integrated_gradients(model, TOKENIZER, questions, steps=2, **options)
    where = layout.slice("mlp.up_proj", 1)
    scale = np.abs(first.totals[:, where]).max()
    np.testing.assert_allclose(along.totals[:, where], first.totals[:, where], atol=0.02 * scale)


def test_refusals() -> None:
    model, questions = families.build("llama"), make_questions(3)
    for call, word in (
        (lambda: ablate(model, TOKENIZER, questions, cf.NeuronSet.empty()), "no neurons"),
        (lambda: ablate(model, TOKENIZER, questions, cf.NeuronSet(("mlp.act",), [0], [48], [0.0])), "not 48"),
        (lambda: integrated_gradients(model, TOKENIZER, questions, steps=0), "0 steps"),
        (lambda: integrated_gradients(model, TOKENIZER, questions, reduction="mean"), "mean"),
    ):
        with pytest.raises(cf.CulnigError, match=word):
            call()
