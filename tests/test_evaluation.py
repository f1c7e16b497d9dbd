"""Evaluation against one question at a time, its files, and comparison."""

from __future__ import annotations

import json
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.evaluation import Evaluation, compare, prepare

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(12)


def a_result(correct: list[bool], ids: list[str] | None = None) -> Evaluation:
    n = len(correct)
    ids = [f"q{i}" for i in range(n)] if ids is None else ids
    groups = tuple("ab"[i % 2] for i in range(n))
    predictions = tuple("A" if right else "B" for right in correct)
    return Evaluation(tuple(ids), groups, ("A",) * n, predictions, np.array(correct), np.full(n, 0.5))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_multimodal"])
def test_predictions_equal_one_at_a_time(family: str) -> None:
    model = families.build(family).train()
    result = cf.evaluate(model, TOKENIZER, QUESTIONS, batch_tokens=30, progress=False)
    assert model.training
    assert all(not module._forward_pre_hooks for module in model.modules())
    model.eval()
    for row, question in enumerate(QUESTIONS):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([TOKENIZER(question.prompt)["input_ids"]])).logits[0, -1]
        assert result.predictions[row] == TOKENIZER.decode([int(logits.argmax())])
        gold = torch.softmax(logits, 0)[TOKENIZER.convert_tokens_to_ids(question.answer)]
        assert result.probability[row] == pytest.approx(float(gold), rel=1e-5)
        assert result.correct[row] == (result.predictions[row] == question.answer)
    assert result.ids == tuple(question.id for question in QUESTIONS)


def test_accuracy_by_group() -> None:
    result = a_result([True, False, True, True, False])
    assert result.accuracy == 0.6
    assert result.by_group() == {"a": 2 / 3, "b": 0.5}
    assert result.where(["q1", "q3"]).accuracy == 0.5
    with pytest.raises(cf.CulnigError):
        result.where(["nobody"])


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_results_survive_their_file(suffix: str, tmp_path: Path) -> None:
    result = a_result([True, False], ["ü", 'a "quoted", id'])
    path = tmp_path / f"results{suffix}"
    result.save(path)
    if suffix == ".jsonl":
        again = Evaluation.load(path)
        assert again.ids == result.ids
        assert again.correct.tolist() == [True, False]
        assert again.probability.tolist() == [0.5, 0.5]
    else:
        assert path.read_text(encoding="utf-8").splitlines()[2] == '"a ""quoted"", id",b,A,B,False,0.5'
    with pytest.raises(cf.CulnigError, match="exists"):
        result.save(path)
    with pytest.raises(cf.CulnigError, match=r"\.jsonl"):
        result.save(tmp_path / "results.txt")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"id": "a"}'])
def test_broken_results_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(cf.CulnigError, match=r"results\.jsonl"):
        Evaluation.load(path)


def test_comparison_pairs_by_id_not_by_order() -> None:
    worse = a_result([False] * 30 + [True] * 70)
    better = a_result([True] * 100)
    shuffled = a_result([True] * 100, [f"q{i}" for i in reversed(range(100))])
    found = compare(worse, better)
    assert found["difference"] == pytest.approx(-30)
    assert found["p_value"] < 0.001
    assert compare(worse, shuffled) == found
    mixed = a_result([True] * 70 + [False] * 30, [f"q{i}" for i in reversed(range(100))])
    assert compare(worse, mixed)["difference"] == 0
    with pytest.raises(cf.CulnigError, match="different questions"):
        compare(worse, a_result([True]))


def test_a_predicted_label_counts_as_text() -> None:
    """The answer `A` is right when the decoded prediction reads A, whichever vocabulary entry that is."""
    model = families.build("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[TOKENIZER.convert_tokens_to_ids("C")] = 0.0
        model.model.norm.weight.zero_()
    result = cf.evaluate(model, TOKENIZER, QUESTIONS, progress=False)
    assert set(result.predictions) == {TOKENIZER.decode([0])}
    assert result.accuracy == 0


def test_prepared_questions_give_the_same_under_every_intervention() -> None:
    model, tokenizer, questions = families.build("llama"), make_tokenizer(), make_questions(13)
    prepared = prepare(model, tokenizer, questions, batch_tokens=40)
    layout = cf.discover(model).layout()
    for seed in range(3):
        chosen = cf.select_random(layout, 20 * seed, seed=seed)
        with cf.suppress(model, chosen):
            once = cf.evaluate(model, tokenizer, questions, batch_tokens=40, progress=False)
            again = cf.evaluate(model, tokenizer, prepared, progress=False)
        assert again.ids == once.ids
        assert again.predictions == once.predictions
        assert (again.probability == once.probability).all()


def test_a_missing_probability_is_valid_json_and_comes_back(tmp_path: Path) -> None:
    """NaN, which is what earlier files hold, reads the same."""
    answered = Evaluation(
        ("a", "b"), ("x", "x"), ("1", "2"), ("1", "3"), np.array([True, False]), np.array([np.nan, 0.5])
    )
    answered.save(tmp_path / "a.jsonl")
    text = (tmp_path / "a.jsonl").read_text()
    for line in text.splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    (tmp_path / "b.jsonl").write_text(text.replace("null", "NaN"))
    for name in ("a.jsonl", "b.jsonl"):
        np.testing.assert_array_equal(Evaluation.load(tmp_path / name).probability, [np.nan, 0.5])


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens_are_refused_in_a_sentence(kind: str) -> None:
    peft = pytest.importorskip("peft", reason="the extra [train] is not installed")
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(families.build("llama"), config)
    for work in (cf.evaluate, cf.attribute):
        with pytest.raises(cf.CulnigError, match=f"puts virtual tokens before every prompt .{kind}.*get_base_model"):
            work(model, make_tokenizer(), make_questions(3), progress=False)
    low_rank = peft.get_peft_model(families.build("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    plain = cf.evaluate(families.build("llama"), make_tokenizer(), make_questions(3), progress=False)
    found = cf.evaluate(low_rank, make_tokenizer(), make_questions(3), progress=False)
    np.testing.assert_allclose(found.probability, plain.probability, rtol=1e-5)


@pytest.mark.parametrize("added", [4, -1])
def test_another_number_of_positions_than_tokens_is_refused(added: int) -> None:
    model = families.build("llama")

    def widened(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        shape = (*output.shape[:1], max(added, 0), *output.shape[2:])
        return torch.cat([output.new_zeros(shape), output], 1)[:, : output.shape[1] + added]

    model.model.norm.register_forward_hook(widened)
    questions = make_questions(3)
    tokens = max(len(make_tokenizer()(question.prompt)["input_ids"]) for question in questions)
    with pytest.raises(cf.CulnigError, match=rf"hands {tokens + added} positions to its head for {tokens} tokens"):
        cf.evaluate(model, make_tokenizer(), questions, progress=False)
