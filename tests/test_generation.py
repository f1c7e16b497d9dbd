"""Generation in batches against one token at a time, one prompt at a time and no cache."""

from __future__ import annotations

from typing import Any

import families
import numpy as np
import pytest
import torch
from transformers import GenerationConfig
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf
from culnig_fast.generation import answer, generate

TOKENIZER = make_tokenizer()
QUESTIONS = make_questions(14, longest=11)
END = TOKENIZER.eos_token_id


def plain(model: Any, prompt: str, count: int) -> str:
    """Greedy by definition: the whole text through the model for every new token."""
    tokens = TOKENIZER(prompt)["input_ids"]
    new: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            new.append(int(model(input_ids=torch.tensor([tokens + new]), use_cache=False).logits[0, -1].argmax()))
        if new[-1] == END:
            break
    return str(TOKENIZER.decode(new, skip_special_tokens=True))


@pytest.mark.parametrize("family", [*families.LISTED, "gpt2_conv1d_fused", "opt_plain"])
def test_batches_give_what_each_prompt_gets_alone(family: str) -> None:
    model = families.build(family).train()
    texts = generate(model, TOKENIZER, QUESTIONS, max_new_tokens=7, batch_tokens=80, progress=False)
    assert model.training
    model.eval()
    assert texts == [plain(model, question.prompt, 7) for question in QUESTIONS]
    assert len(set(texts)) > 3, "a model that always says the same tests nothing"


def test_an_answer_ends_where_the_model_ends_it() -> None:
    model = families.build("llama")
    with torch.no_grad():
        model.lm_head.weight[END] += 0.8 * model.lm_head.weight[:4].std() * torch.ones(32)
    expected = [plain(model, question.prompt, 12) for question in QUESTIONS]
    lengths = {len(text.split()) for text in expected}
    assert len(lengths) > 1
    assert generate(model, TOKENIZER, QUESTIONS, max_new_tokens=12, progress=False) == expected


def test_sampling_settings_of_the_checkpoint_are_not_followed() -> None:
    model = families.build("qwen3")
    expected = generate(model, TOKENIZER, QUESTIONS, max_new_tokens=5, progress=False)
    own = GenerationConfig(
        do_sample=True, temperature=5.0, top_k=3, repetition_penalty=9.0, max_length=3, eos_token_id=END
    )
    model.generation_config = own
    assert generate(model, TOKENIZER, QUESTIONS, max_new_tokens=5, progress=False) == expected
    assert model.generation_config is own
    assert own.do_sample


def test_a_suppressed_model_generates_as_its_edited_weights_do() -> None:
    model = families.build("llama")
    layers, columns = [0] * 40 + [1] * 40, [*range(40)] * 2
    neurons = cf.NeuronSet(("mlp.gate_proj",) * 80, layers, columns, [0.0] * 80)
    before = generate(model, TOKENIZER, QUESTIONS, max_new_tokens=5, progress=False)
    with cf.suppress(model, neurons):
        suppressed = generate(model, TOKENIZER, QUESTIONS, max_new_tokens=5, progress=False)
    assert suppressed != before
    baked = cf.bake(model, neurons)
    assert suppressed == [plain(baked, question.prompt, 5) for question in QUESTIONS]


def test_answers_are_scored_by_the_task() -> None:
    model = families.build("llama")
    right = plain(model, QUESTIONS[1].prompt, 4)
    asked = []

    def score(name: str, gold: str, prediction: str) -> float:
        asked.append((name, gold))
        return 100.0 * (prediction == right)

    result = answer(model, TOKENIZER, QUESTIONS, score, max_new_tokens=4, progress=False)
    assert asked == [(question.id, question.answer) for question in QUESTIONS]
    assert result.predictions[1] == right
    assert result.correct.tolist() == [text == right for text in result.predictions]
    assert result.groups == tuple(question.group for question in QUESTIONS)
    assert np.isnan(result.probability).all()


def test_bad_input_is_refused() -> None:
    model = families.build("llama")
    with pytest.raises(cf.CulnigError, match="there are no questions"):
        generate(model, TOKENIZER, [], progress=False)
    with pytest.raises(cf.CulnigError, match="max_new_tokens is 0"):
        generate(model, TOKENIZER, QUESTIONS, max_new_tokens=0, progress=False)
    with pytest.raises(cf.CulnigError, match="id 'q0' occurs twice"):
        answer(model, TOKENIZER, [QUESTIONS[0]] * 2, lambda *_: 0.0, progress=False)
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(cf.CulnigError, match="logits are NaN"):
        generate(model, TOKENIZER, QUESTIONS, progress=False)
