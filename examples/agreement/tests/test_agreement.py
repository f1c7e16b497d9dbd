"""The example finds what it claims to, and uses nothing but the documented API."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import training
from agreement.language import VERB_FORMS, WORDS, sentences
from agreement.neurons import answers, foretold, last_logits, preference, report, score, select

import culnig_fast as cf

PACKAGE = Path(__file__).resolve().parent.parent / "agreement"
TRAIN = training.train


@pytest.fixture(scope="module")
def model() -> Any:
    return TRAIN()


def test_sentences_are_of_the_language() -> None:
    data = sentences(200, seed=3)
    assert torch.equal(data.input_ids, sentences(200, seed=3).input_ids)
    for row, length, plural in zip(data.input_ids, data.lengths, data.plural, strict=True):
        words = [WORDS[token] for token in row[:length]]
        assert words[:2] == ["<s>", "the"]
        assert words[2].endswith("s") == bool(plural)
        assert not row[length:].any()
        assert len(words) in (3, 6, 9)
    assert 60 < int(data.plural.sum()) < 140
    assert WORDS[VERB_FORMS[0, 0]] == "sees"


def test_scores_are_the_first_order_effect_of_zeroing_a_neuron(model: Any) -> None:
    """Scaling a neuron by 1 ± 1 % moves the preference as its score says; norms stay in float32 in this model."""
    data = sentences(20, seed=4)
    totals, layout = score(model, data)
    for place in totals.abs().sum(0).topk(3).indices.tolist():
        one = cf.NeuronSet.from_flat(layout, [place])
        moved = []
        for factor in (1.01, 0.99):
            with cf.scaled(model, one, factor), torch.no_grad():
                logits = model(input_ids=data.input_ids).logits[torch.arange(20), data.lengths - 1]
                moved.append(float(preference(logits, data.plural).sum()))
        assert (moved[0] - moved[1]) / 0.02 == pytest.approx(float(totals[:, place].sum()), rel=5e-3)


def test_scores_foretell_what_silencing_one_neuron_costs(model: Any) -> None:
    """Brute force through the same names: one neuron at a time is what a `cf.suppress` of it alone does."""
    data = sentences(40, seed=5)
    totals, layout = score(model, data)
    best = totals.sum(0).topk(16)
    chosen = cf.NeuronSet.from_flat(layout, best.indices, best.values)
    found = foretold(model, data, totals, chosen, layout)
    assert found.spearman > 0.6
    assert found.overlap >= 0.5
    ablator = cf.ModuleAblator(model, cf.ModuleNeurons.of_decoder(model, chosen), progress=False)
    effects = ablator.add(lambda m: preference(last_logits(m, data), data.plural))
    for place, neuron in enumerate(best.indices[:2].tolist()):
        with torch.no_grad():
            whole = preference(last_logits(model, data), data.plural)
            with cf.suppress(model, cf.NeuronSet.from_flat(layout, [neuron])):
                without = preference(last_logits(model, data), data.plural)
        assert torch.equal(torch.from_numpy(effects[:, place]), whole.double() - without.double())


def test_the_chosen_neurons_carry_agreement(model: Any) -> None:
    totals, layout = score(model, sentences(300, seed=1))
    chosen = select(totals, layout, count=9)
    found = report(model, sentences(300, seed=2), chosen, layout, draws=5)
    assert found["agreement"] > 0.98
    assert found["without"] < found["without_random"] - 0.1
    assert found["p_value"] < 0.01
    assert found["still_a_sentence"] > 0.9
    assert answers(model, sentences(300, seed=2))[0].mean() == found["agreement"], "the model is as it was"


def test_the_program_prints_its_findings(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "train", lambda: model)
    runpy.run_module("agreement", run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.startswith("NeuronSet(9 neurons): ")
    assert "without_random" in printed
    assert "rank correlation with silencing one by one: 0." in printed


def test_only_the_documented_api_is_used() -> None:
    sources = [path.read_text(encoding="utf-8") for path in PACKAGE.glob("*.py")]
    assert not [line for source in sources for line in re.findall(r"^.*culnig_(?:fast\.|kernels).*$", source, re.M)
                if "import" in line]  # fmt: skip
    names = {name for source in sources for name in re.findall(r"\bcf\.(\w+)", source)}
    assert names
    assert names <= set(cf.__all__)
    assert sum(bool(line.strip()) for source in sources for line in source.splitlines()) <= 150
