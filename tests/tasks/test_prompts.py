"""Messages as models see them, options in a fixed order."""

from __future__ import annotations

import hashlib
import random
import warnings

import pytest
from small_tokenizers import BOS_TEMPLATE, CHAT_TEMPLATE, byte_level

from culnig_fast.errors import CulnigError, CulnigWarning
from culnig_fast.tasks.prompts import option_lines, render, seeded, shuffled


def test_without_a_chat_template_the_prefix_follows_on_a_new_line() -> None:
    assert render(byte_level(), "Which?\n\nAnswer:") == 'Which?\n\nAnswer:\n{"answer_choice":"'
    assert render(byte_level(), "Which?", "(") == "Which?\n("


def test_plain_text_is_said_once_a_tokenizer() -> None:
    """In a program that shows every warning too."""
    tokenizer = byte_level()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for text in ("Which?", "What?"):
            render(tokenizer, text)
        render(byte_level(chat_template=CHAT_TEMPLATE), "Which?")
        assert [str(one.message)[:35] for one in said] == ["this tokenizer has no chat template"]
        assert said[0].category is CulnigWarning
        render(byte_level(), "Which?")
        assert len(said) == 2


def test_the_chat_template_is_applied_with_generation_prompt_and_without_thinking() -> None:
    expected = (
        '<|im_start|>user\nWhich {one}?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n{"answer_choice":"'
    )
    assert render(byte_level(chat_template=CHAT_TEMPLATE), "Which {one}?") == expected
    assert render(byte_level(chat_template=BOS_TEMPLATE), "Which {one}?") == "<|bos|>" + expected


def test_a_template_that_knows_no_thinking_is_fine() -> None:
    tokenizer = byte_level(chat_template="[{{ messages[0]['content'] }}]")
    assert render(tokenizer, "x") == '[x]{"answer_choice":"'


@pytest.mark.parametrize("template", ["{{ raise_exception('no system role') }}", "{% if %}"])
def test_a_template_that_fails_is_one_sentence(template: str) -> None:
    with pytest.raises(CulnigError, match="chat template fails"):
        render(byte_level(chat_template=template), "x")


def test_the_order_is_that_of_a_generator_seeded_by_the_keys_md5() -> None:
    key = "Al-en-01_é_{}"
    expected = list("ABCDEFG")
    random.Random(int(hashlib.md5(key.encode("utf-8")).hexdigest()[:8], 16)).shuffle(expected)
    assert shuffled(key, "ABCDEFG") == expected
    assert seeded("").random() == random.Random(0xD41D8CD9).random()  # the md5 of nothing


def test_the_order_is_the_same_on_every_python() -> None:
    assert shuffled("key", ["a", "b", "c", "d", "e", "f"]) == ["e", "a", "d", "b", "f", "c"]


def test_shuffling_leaves_its_input_and_the_global_state() -> None:
    options = ("a", "b", "c")
    random.seed(3)
    expected = random.random()
    random.seed(3)
    assert sorted(shuffled("k", options)) == sorted(options)
    assert random.random() == expected


def test_option_lines() -> None:
    assert option_lines(("A", "B"), ("x", "y z")) == "A. x\nB. y z"
    with pytest.raises(ValueError, match="shorter|longer"):
        option_lines(("A", "B"), ("x",))
