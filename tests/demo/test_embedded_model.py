"""The shipped checkpoint: small, one token an answer, knowing the world as imperfectly as it is meant to."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from culnig_fast.demo.build import LABELS, main
from culnig_fast.errors import CulnigError
from culnig_fast.evaluation import evaluate
from culnig_fast.models import EMBEDDED, embedded_folder, load_model
from culnig_fast.questions import Question, answer_token, encode_prompt
from culnig_fast.tasks.base import load_task
from culnig_fast.tasks.blend import Blend
from culnig_fast.tasks.country_rc import CountryRC
from culnig_fast.tasks.prompts import render


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load_model(EMBEDDED, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def blend() -> Blend:
    data = embedded_folder("data")
    return Blend.load(data / "blend.jsonl", data / "questions.csv")


def _abilities(tokenizer: Any) -> list[Question]:
    lines = (embedded_folder("data") / "abilities.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Question(r["id"], r["group"], render(tokenizer, r["prompt"]), r["answer"]) for r in rows]


def test_checkpoint_and_data_are_small() -> None:
    sizes = {part: sum(f.stat().st_size for f in embedded_folder(part).iterdir()) for part in ("model", "data")}
    assert sizes["model"] <= 5e6
    assert sizes["data"] <= 3e6


def test_every_answer_label_is_one_token(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    for label in LABELS:
        token = answer_token(tokenizer, Question("q", "g", "p", label))
        assert tokenizer.decode([token]) == label


def test_no_prompt_has_an_unknown_word(loaded: tuple[Any, Any], blend: Blend) -> None:
    _, tokenizer = loaded
    passages = CountryRC.load(embedded_folder("data") / "country_rc.json").questions("all", tokenizer)
    questions = [*blend.questions("all", tokenizer), *blend.questions("control", tokenizer), *passages]
    for question in [*questions, *_abilities(tokenizer)]:
        tokens = encode_prompt(tokenizer, question)
        assert tokenizer.unk_token_id not in tokens, question.prompt
        assert len(tokens) <= 45
        assert tokenizer.decode(tokens[-1:]) == '{"answer_choice":"'


def test_tokenizer_adds_no_special_tokens_of_its_own(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    assert (
        tokenizer("What is the usual").input_ids == tokenizer("What is the usual", add_special_tokens=False).input_ids
    )


def test_accuracy_is_in_the_stated_band(loaded: tuple[Any, Any], blend: Blend) -> None:
    model, tokenizer = loaded
    culture = evaluate(model, tokenizer, blend.questions("all", tokenizer)[::5], progress=False)
    assert 0.60 <= culture.accuracy <= 0.98
    # Far from saturation, where gradients vanish and scores are noise.
    assert 0.5 <= culture.probability.mean() <= 0.97
    control = evaluate(model, tokenizer, blend.questions("control", tokenizer)[::5], progress=False)
    assert control.accuracy <= 0.40
    passages = CountryRC.load(embedded_folder("data") / "country_rc.json").questions("test", tokenizer)
    assert evaluate(model, tokenizer, passages[::2], progress=False).accuracy >= 0.95
    for name, accuracy in evaluate(model, tokenizer, _abilities(tokenizer)[::2], progress=False).by_group().items():
        assert accuracy >= 0.93, name
    # What training is tried on: neither mastered nor guessed.
    longer = load_task("membership_long").questions("test", tokenizer)
    assert 0.60 <= evaluate(model, tokenizer, longer, progress=False).accuracy <= 0.80


def test_build_makes_a_model_that_loads_and_can_be_made_again(tmp_path: Any) -> None:
    small = ["--layers", "1", "--hidden", "16", "--intermediate", "24", "--batch", "6", "--threads", "1"]
    steps = ["--warm-steps", "2", "--steps", "2"]
    weights = []
    for name in ("a", "b"):
        main(["--out", str(tmp_path / name), *small, *steps])
        model, _ = load_model(str(tmp_path / name / "model"), device="cpu")
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    with pytest.raises(SystemExit, match="exists already"):
        main(["--out", str(tmp_path / "a"), *small, *steps])


def test_unknown_embedded_folder_is_one_clear_error() -> None:
    with pytest.raises(CulnigError, match="no checkpoint folder"):
        load_model("./no-such-model", device="cpu")
