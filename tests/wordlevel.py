"""A word-level tokenizer for tests: token i is the word `w{i}`, a few indices are answer labels."""

from __future__ import annotations

import random
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from culnig_fast.questions import Question

LABELS = ("A", "B", "C", "D")


def make_tokenizer(size: int = 64) -> Any:
    """Whitespace tokenizer over `size` words; indices 4–7 are A–D."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *LABELS]
    words += [f"w{i}" for i in range(len(words), size)]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def make_questions(count: int, groups: int = 3, seed: int = 0, longest: int = 9, size: int = 64) -> list[Question]:
    """Random questions of 1…`longest` words; every group and length occurs early."""
    random_ = random.Random(seed)
    questions = []
    for i in range(count):
        length = 1 + i % longest
        prompt = " ".join(f"w{random_.randrange(8, size)}" for _ in range(length))
        questions.append(Question(f"q{i}", f"group {i % groups}", prompt, random_.choice(LABELS)))
    return questions
