"""Per-sample scores of chosen neurons, and resampled totals: held to the float64 oracle and to plain sums."""

from __future__ import annotations

import copy
from pathlib import Path

import families
import numpy as np
import oracle
import pytest
import torch
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.resampling import bootstrap_counts

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(6)
SITES = ("self_attn.k_proj", "mlp.gate_proj", "mlp.up_proj")


def oracle_scores(model: torch.nn.Module, sites: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(P [samples], scores [samples, neurons of the sites])."""
    double = copy.deepcopy(model).double().eval().requires_grad_(True)
    found = []
    for question in QUESTIONS:
        tokens = TOKENIZER(question.prompt)["input_ids"]
        answer = TOKENIZER.convert_tokens_to_ids(question.answer)
        found.append(oracle.sample_scores(double, tokens, answer, sites, "max"))
    return np.array([p for p, _ in found]), np.stack([scores for _, scores in found])


@pytest.mark.parametrize("path", ["taps", "fused"])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_every_sample_has_its_own_score(family: str, path: str) -> None:
    model = families.build(family)
    layout = cf.discover(model).layout(SITES)
    probability, expected = oracle_scores(model, SITES)
    flat = np.random.default_rng(0).permutation(layout.size)[:40]
    chosen = cf.NeuronSet.from_flat(layout, flat)
    table = cf.record_instances(model, TOKENIZER, QUESTIONS, chosen, batch_tokens=30, path=path, progress=False)
    assert table.ids == tuple(question.id for question in QUESTIONS)
    assert table.groups == tuple(question.group for question in QUESTIONS)
    np.testing.assert_allclose(table.probability, probability, rtol=1e-4)
    np.testing.assert_allclose(table.scores, expected[:, flat], atol=1e-5 * np.abs(expected).max())


def test_weighted_and_added_up_they_are_the_totals() -> None:
    model = families.build("llama").double()
    layout = cf.discover(model).layout(SITES)
    flat = np.arange(0, layout.size, 7)
    chosen = cf.NeuronSet.from_flat(layout, flat)
    table = cf.record_instances(model, TOKENIZER, QUESTIONS, chosen, progress=False)
    totals = cf.attribute(model, TOKENIZER, QUESTIONS, sites=SITES, progress=False)
    for row, name in enumerate(totals.groups):
        mine = np.array([group == name for group in table.groups])
        added = (table.probability[mine, None] * table.scores[mine]).sum(0)
        np.testing.assert_allclose(added, totals.totals[row, flat], rtol=1e-12, atol=1e-18)


def test_tables_come_back_from_their_files(tmp_path: Path) -> None:
    model = families.build("llama")
    chosen = cf.NeuronSet.from_flat(cf.discover(model).layout(SITES), [3, 1, 70], [0.5, 0.25, -1.0])
    table = cf.record_instances(model, TOKENIZER, QUESTIONS, chosen, progress=False)
    table.save(tmp_path / "a.safetensors")
    again = cf.InstanceTable.load(tmp_path / "a.safetensors")
    assert again.neurons == chosen
    assert np.array_equal(again.scores, table.scores)
    assert np.array_equal(again.probability, table.probability)
    assert (again.ids, again.groups, again.metadata) == (table.ids, table.groups, table.metadata)
    with pytest.raises(cf.CulnigError, match="exists"):
        table.save(tmp_path / "a.safetensors")
    totals = cf.attribute(model, TOKENIZER, QUESTIONS, progress=False)
    totals.save(tmp_path / "b.safetensors")
    with pytest.raises(cf.CulnigError, match="not an instance table"):
        cf.InstanceTable.load(tmp_path / "b.safetensors")


def test_refusals() -> None:
    model = families.build("llama")
    with pytest.raises(cf.CulnigError, match="empty"):
        cf.record_instances(model, TOKENIZER, QUESTIONS, cf.NeuronSet.empty(), progress=False)
    for name, layer, column in (("mlp.gate_proj", 9, 0), ("mlp.gate_proj", 0, 99_999)):
        chosen = cf.NeuronSet((name,), np.array([layer]), np.array([column]), np.zeros(1))
        with pytest.raises(cf.CulnigError, match=f"layer {layer}"):
            cf.record_instances(model, TOKENIZER, QUESTIONS, chosen, progress=False)
    with pytest.raises(cf.CulnigError, match="shape|got scores"):
        cf.InstanceTable(cf.NeuronSet.empty(), np.zeros((2, 1)), np.zeros(2), ("a", "b"), ("x", "x"))


def test_counts_keep_each_group_and_are_the_same_for_the_same_groups() -> None:
    groups = ["a"] * 5 + ["b"] * 3
    counts = bootstrap_counts(groups, 200, seed=4)
    assert counts.shape == (8, 200)
    assert (counts[:5].sum(0) == 5).all()
    assert (counts[5:].sum(0) == 3).all()
    assert np.array_equal(counts, bootstrap_counts(groups, 200, seed=4))
    assert not np.array_equal(counts, bootstrap_counts(groups, 200, seed=5))
    # A question is left out of a resample of five with probability (4/5)^5; four standard errors of 1,000 draws.
    assert abs((counts[:5] == 0).mean() - 0.8**5) < 4 * np.sqrt(0.8**5 * (1 - 0.8**5) / 1000)
    with pytest.raises(cf.CulnigError, match="at least one"):
        bootstrap_counts([], 3)


@pytest.mark.parametrize("control", [False, True])
def test_resampled_totals_are_those_of_the_questions_drawn(control: bool) -> None:
    """Each resample's row against the oracle's scores, added up draw by draw."""
    model = families.build("llama").double()
    probability, scores = oracle_scores(model, SITES)
    table = cf.attribute(
        model, TOKENIZER, QUESTIONS, sites=SITES, resamples=4, seed=2, control=control, batch_tokens=30, progress=False
    )
    counts = bootstrap_counts([question.group for question in QUESTIONS], 4, seed=2)
    assert table.groups == ("0", "1", "2", "3")
    assert table.counts.tolist() == [len(QUESTIONS)] * 4
    for resample in range(4):
        want, mass = np.zeros(scores.shape[1]), 0.0
        for sample in range(len(QUESTIONS)):
            for _ in range(counts[sample, resample]):
                weighted = probability[sample] * scores[sample]
                want += np.maximum(weighted, 0) if control else weighted
                mass += probability[sample]
        # The softmax is in float32 whatever the model's dtype.
        tolerance = 16 * float(np.finfo(np.float32).eps)
        np.testing.assert_allclose(table.totals[resample], want, rtol=0, atol=tolerance * np.abs(want).max())
        assert table.probability[resample] == pytest.approx(mass, rel=tolerance)
