"""Greedy generation in batches: the same texts as one prompt at a time, by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast import cli
from culnig_fast.errors import CulnigError
from culnig_fast.generation import answer, generate
from culnig_fast.tasks import blend_short

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(9)
NEW = 6


def by_hand(model: Any, prompt: str, most: int) -> list[int]:
    """Arg-max after arg-max, the whole sequence again each time: no cache, no padding, no generate()."""
    tokens = TOKENIZER(prompt)["input_ids"]
    end = model.generation_config.eos_token_id
    new: list[int] = []
    with torch.no_grad():
        while len(new) < most:
            token = int(model(input_ids=torch.tensor([[*tokens, *new]])).logits[0, -1].argmax())
            new.append(token)
            if token == end:
                break
    return new


@pytest.mark.parametrize("batch_tokens", [1, 40, 1000])
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3", "gpt2_conv1d_fused"])
def test_batches_give_what_one_prompt_at_a_time_gives(family: str, batch_tokens: int) -> None:
    model = families.build(family)
    expected = [TOKENIZER.decode(by_hand(model, q.prompt, NEW), skip_special_tokens=True) for q in QUESTIONS]
    got = generate(model, TOKENIZER, QUESTIONS, max_new_tokens=NEW, batch_tokens=batch_tokens, progress=False)
    assert got == expected
    assert len(set(got)) > 1


def test_the_checkpoints_own_sampling_is_not_done() -> None:
    model = families.build("llama")
    plain = generate(model, TOKENIZER, QUESTIONS, max_new_tokens=NEW, progress=False)
    model.generation_config.do_sample, model.generation_config.temperature = True, 5.0
    assert generate(model, TOKENIZER, QUESTIONS, max_new_tokens=NEW, progress=False) == plain


def test_suppressed_neurons_change_what_is_said() -> None:
    model = families.build("llama")
    layout = cf.discover(model).layout()
    chosen = cf.select_random(layout, 150, seed=0)
    plain = generate(model, TOKENIZER, QUESTIONS, max_new_tokens=NEW, progress=False)
    with cf.suppress(model, chosen):
        suppressed = generate(model, TOKENIZER, QUESTIONS, max_new_tokens=NEW, progress=False)
    assert plain != suppressed
    assert generate(model, TOKENIZER, QUESTIONS, max_new_tokens=NEW, progress=False) == plain


def test_answers_are_scored_by_the_task() -> None:
    model = families.build("llama")
    texts = generate(model, TOKENIZER, QUESTIONS, max_new_tokens=NEW, progress=False)
    result = answer(
        model,
        TOKENIZER,
        QUESTIONS,
        lambda name, gold, given: 100.0 * (given == texts[0]),
        max_new_tokens=NEW,
        progress=False,
    )
    assert list(result.predictions) == texts
    assert result.correct.tolist() == [text == texts[0] for text in texts]


def test_broken_input_is_one_sentence() -> None:
    model = families.build("llama")
    with pytest.raises(CulnigError, match="there are no questions"):
        generate(model, TOKENIZER, [], progress=False)
    with pytest.raises(CulnigError, match="at least one token"):
        generate(model, TOKENIZER, QUESTIONS, max_new_tokens=0, progress=False)
    with pytest.raises(CulnigError, match="occurs twice"):
        answer(model, TOKENIZER, [QUESTIONS[0], QUESTIONS[0]], lambda *a: 0.0, progress=False)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(CulnigError, match="logits are NaN"):
        generate(model, TOKENIZER, QUESTIONS, progress=False)


def write_short_answers(folder: Path, country: str) -> None:
    """BLEnD's files of one country: two questions that can be answered and one that cannot."""
    for name in ("annotations", "prompts"):
        (folder / name).mkdir(exist_ok=True)
    known = {"annotations": [{"answers": ["tea"], "en_answers": ["tea"], "count": 3}], "idks": {}}
    entries = {name: {"question": name, "en_question": name, **known} for name in ("w1 w2", "w3")}
    entries["w4"] = {**entries["w3"], "idks": {"idk": 5}}
    (folder / "annotations" / f"{country}_data.json").write_text(json.dumps(entries))
    rows = "id,English,Translation\ninst-4,w5 {q},w5 {q}\npers-3,w6 {q},w6 {q}\n"
    (folder / "prompts" / f"{country}_prompts.csv").write_text(rows)


def invoke(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["culnig-fast", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    output = capsys.readouterr()
    return code, output.out, output.err


def test_the_command_answers_and_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for country in ("UK", "US"):
        write_short_answers(tmp_path, country)
    options = ("UK", "USA")
    load = blend_short.BlendShort.load.__func__
    monkeypatch.setattr(load, "__defaults__", (None, None, None, options, "both"))
    families.build("llama").save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    arguments = ("answer", tmp_path / "model", "--data", tmp_path, "--max-new-tokens", 4, "--quiet", "--device", "cpu")
    code, out, err = invoke(capsys, monkeypatch, *arguments, "--limit", 1, "--out", tmp_path / "a.jsonl", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["questions"] == 2 and set(found["groups"]) == {"UK", "USA"}
    assert any("no answer on which annotators agreed" in note for note in found["notes"])
    code, _, err = invoke(capsys, monkeypatch, *arguments, "--out", tmp_path / "a.jsonl")
    assert code == 1 and "exists already" in err
    code, _, err = invoke(capsys, monkeypatch, "answer", tmp_path / "model", "--task", "qnli", "--data", "x.tsv")
    assert code == 1
