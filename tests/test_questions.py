"""Questions, their tokens and their answers."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import families
import pytest
from small_tokenizers import BOS_TEMPLATE, CHAT_TEMPLATE, byte_level, metaspace

import culnig_fast as cf
from culnig_fast.errors import CulnigError
from culnig_fast.generation import answer, generate
from culnig_fast.questions import (
    Question,
    answer_token,
    check_unique_ids,
    encode_prompt,
    encode_prompts,
    encode_questions,
    split_usable,
)
from culnig_fast.tasks.prompts import render


def question(answer: str = "A", prompt: str = "Which one?", name: str = "q1") -> Question:
    return Question(name, "UK", prompt, answer)


@pytest.mark.parametrize("field", ["id", "group", "prompt", "answer"])
@pytest.mark.parametrize(("value", "word"), [("", "empty"), (7, "int"), (None, "NoneType")])
def test_a_field_that_is_empty_or_no_text_is_refused_by_name(field: str, value: object, word: str) -> None:
    fields: dict[str, object] = {"id": "q1", "group": "UK", "prompt": "p", "answer": "A", field: value}
    with pytest.raises(CulnigError, match=rf"{field}\b.*{word}|{word} {field}"):
        Question(**fields)  # type: ignore[arg-type]


def test_a_question_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        question().answer = "B"  # type: ignore[misc]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("eos", [False, True])
def test_plain_text_gets_the_bos_once_and_never_an_eos(bos: bool, eos: bool) -> None:
    tokenizer = byte_level(bos, eos)
    bare = tokenizer("Which one?", add_special_tokens=False)["input_ids"]
    expected = [tokenizer.bos_token_id, *bare] if bos else bare
    assert encode_prompt(tokenizer, "Which one?") == expected


@pytest.mark.parametrize("bos", [False, True])
def test_a_rendered_bos_is_not_doubled(bos: bool) -> None:
    tokenizer = byte_level(bos, chat_template=BOS_TEMPLATE)
    token_ids = encode_prompt(tokenizer, render(tokenizer, "Which one?"))
    assert token_ids.count(tokenizer.bos_token_id) == 1
    assert token_ids[0] == tokenizer.bos_token_id


def test_a_rendered_prompt_that_opens_with_another_special_token_gets_no_bos() -> None:
    tokenizer = byte_level(bos=True, chat_template=CHAT_TEMPLATE)
    # Only its entry in the vocabulary says that it is special.
    assert "<|im_start|>" not in tokenizer.all_special_tokens
    token_ids = encode_prompt(tokenizer, render(tokenizer, "Which one?"))
    assert token_ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert tokenizer.bos_token_id not in token_ids


def test_a_template_that_opens_with_ordinary_text_gets_the_bos() -> None:
    tokenizer = byte_level(bos=True, chat_template="User: {{ messages[0]['content'] }}\nAssistant:")
    token_ids = encode_prompt(tokenizer, render(tokenizer, "Which one?"))
    assert token_ids[0] == tokenizer.bos_token_id
    assert token_ids.count(tokenizer.bos_token_id) == 1


def test_a_special_token_that_ends_the_text_itself_stays() -> None:
    tokenizer = byte_level(bos=True, eos=True)
    token_ids = encode_prompt(tokenizer, "one<|eos|>")
    assert token_ids[-1] == tokenizer.eos_token_id
    assert token_ids.count(tokenizer.eos_token_id) == 1


def test_many_prompts_are_encoded_as_one_by_one_and_in_order() -> None:
    tokenizer = byte_level(bos=True, eos=True)
    prompts = ["Which one?", "<|im_start|>user", "C D", "<|bos|>x", "1 2"]
    questions = [question(prompt=text, name=f"q{i}") for i, text in enumerate(prompts)]
    assert encode_prompts(tokenizer, questions) == [tuple(encode_prompt(tokenizer, text)) for text in prompts]


def test_a_prompt_without_tokens_is_refused_by_name() -> None:
    nothing = Question("q7", "UK", "\u200b", "A")

    class Silent:
        all_special_tokens: tuple[str, ...] = ()
        all_special_ids: tuple[int, ...] = ()

        def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
            return {"input_ids": [[] for _ in texts]}

    for encode in (lambda: encode_prompt(Silent(), nothing), lambda: encode_prompts(Silent(), [nothing])):
        with pytest.raises(CulnigError, match="'q7' has no tokens"):
            encode()
    with pytest.raises(CulnigError, match="no tokens"):
        encode_prompt(byte_level(), "")


def test_the_answer_is_the_vocabularys_own_entry_not_what_tokenising_makes_of_it() -> None:
    tokenizer = metaspace()
    assert tokenizer.tokenize("A") == ["▁A"]
    assert answer_token(tokenizer, question("A")) == tokenizer.get_vocab()["A"]
    assert answer_token(byte_level(), question("1")) == byte_level().get_vocab()["1"]


@pytest.mark.parametrize(
    ("tokenizer", "label", "pieces"),
    [
        (byte_level(), "10", r"\['1', '0'\]"),  # no unknown token: the lookup says None
        (metaspace(), "10", r"\['<unk>'\]"),  # the lookup says <unk>
        (metaspace(), "<unk>", "<unk>"),
        (byte_level(), "é", "Ã"),  # two bytes
        (byte_level(), "Ġ", "Ä"),  # a vocabulary entry, but it stands for a space
    ],
)
def test_an_answer_that_is_not_one_token_is_refused_with_its_pieces(tokenizer: object, label: str, pieces: str) -> None:
    with pytest.raises(CulnigError, match=rf"{label}.*'q1'.*{pieces}.*leave such questions out"):
        answer_token(tokenizer, question(label))


def test_unusable_questions_are_counted_and_named() -> None:
    tokenizer = byte_level()
    questions = [question("10" if i % 2 else "1", name=f"q{i}") for i in range(15)]
    split = split_usable(tokenizer, questions)
    assert [q.id for q in split.usable] == [f"q{i}" for i in range(0, 15, 2)]
    assert [q.id for q in split.unusable] == [f"q{i}" for i in range(1, 15, 2)]
    assert split.describe(2) == ("7 of 15 questions left out, their answer is not one token: q1 ('10'), q3 ('10'), …")
    assert split_usable(tokenizer, questions[::2]).describe() == ""


def test_encoding_skips_unusable_questions_only_when_told_to() -> None:
    tokenizer = byte_level(bos=True)
    questions = [question("A", "x", "a"), question("10", "y", "b"), question("B", "zz", "c")]
    with pytest.raises(CulnigError, match="'b'"):
        encode_questions(tokenizer, questions)
    encoded = encode_questions(tokenizer, questions, "skip")
    assert encoded.unusable == ("b",)
    assert [q.id for q in encoded.questions] == ["a", "c"]
    assert encoded.answers == tuple(tokenizer.convert_tokens_to_ids(["A", "B"]))
    assert encoded.token_ids == tuple(tuple(encode_prompt(tokenizer, text)) for text in ("x", "zz"))


def test_encoding_refuses_what_cannot_be_scored() -> None:
    tokenizer = byte_level()
    with pytest.raises(CulnigError, match="no questions"):
        encode_questions(tokenizer, [])
    with pytest.raises(CulnigError, match="'q1' occurs twice"):
        encode_questions(tokenizer, [question(), question()])
    with pytest.raises(CulnigError, match="none of the 1 questions"):
        encode_questions(tokenizer, [question("10")], "skip")
    with pytest.raises(CulnigError, match="'drop'"):
        encode_questions(tokenizer, [question()], "drop")


def test_unique_ids_pass() -> None:
    check_unique_ids([question(name="a"), question(name="b")])


def test_questions_and_tasks_load_without_the_heavy_libraries() -> None:
    program = (
        "import sys, culnig_fast.questions\n"
        "from culnig_fast.tasks.base import tasks\n"
        "tasks()\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("Which one?", "question number 0 is a str; give culnig_fast.Question"),
        ([question(), {"id": "q2"}], "question number 1 is a dict; give culnig_fast.Question"),
        (question(), "the questions are a Question; give a list"),
        (None, "the questions are a NoneType; give a list"),
    ],
)
def test_what_is_no_list_of_questions_is_refused(given: Any, words: str) -> None:
    with pytest.raises(CulnigError, match=words):
        encode_questions(byte_level(), given)
    for ask in (generate, lambda *given: answer(*given, score=lambda *row: 0.0)):
        with pytest.raises(CulnigError, match=words):
            ask(families.build("llama"), byte_level(), given)


def test_a_model_and_its_tokenizer_in_the_wrong_order() -> None:
    model, tokenizer = families.build("llama"), byte_level()
    asking = (cf.attribute, cf.evaluate, cf.count_activations, generate, partial(answer, score=lambda *row: 0.0))
    for ask in asking:
        for given, kind in ((model, "LlamaForCausalLM"), (None, "NoneType")):
            with pytest.raises(CulnigError, match=f"the tokenizer is a {kind}; give the model first"):
                ask(tokenizer, given, [question()])
        with pytest.raises(CulnigError, match="NoneType.* is not a Hugging Face decoder|NoneType, not a Hugging Face"):
            ask(None, tokenizer, [question()])
