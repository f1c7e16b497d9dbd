"""A question as the engine takes it, and its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from culnig_fast.errors import CulnigError


@dataclass(frozen=True)
class Question:
    """One sample: a prompt and the one token that answers it.

    Attributes:
        id: unique within a dataset.
        group: what its scores are summed under, e.g. a country.
        prompt: the text exactly as the model is to see it, up to the position whose next token is the answer.
        answer: the gold option's bare label, e.g. `A`.

    Raises:
        CulnigError: a field is empty.
    """

    id: str
    group: str
    prompt: str
    answer: str

    def __post_init__(self) -> None:
        for name in ("id", "group", "prompt", "answer"):
            if not getattr(self, name):
                raise CulnigError(f"question {self.id!r} has an empty {name}; every question needs one")


@dataclass(frozen=True)
class EncodedQuestions:
    """Questions as tokens.

    Attributes:
        questions: those that can be used, in the order given.
        token_ids: the prompt of each.
        answers: the vocabulary index of each answer.
        unusable: ids of the questions left out because their answer is not one token.
    """

    questions: tuple[Question, ...]
    token_ids: tuple[tuple[int, ...], ...]
    answers: tuple[int, ...]
    unusable: tuple[str, ...]


def encode_questions(
    tokenizer: Any, questions: Sequence[Question], on_unusable: str = "error"
) -> EncodedQuestions:
    """Tokenise prompts and look up answers.

    Args:
        tokenizer: a Hugging Face tokenizer.
        questions: at least one, ids unique.
        on_unusable: what an answer that is not one token does: `error`, or `skip` (counted and named).

    Raises:
        CulnigError: no questions, a repeated id, an empty prompt, an unusable answer, or none left.
    """
    if on_unusable not in ("error", "skip"):
        raise CulnigError(f"unknown choice {on_unusable!r} for unusable questions; choose error or skip")
    if not questions:
        raise CulnigError("there are no questions; check the file, the split and the countries asked for")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise CulnigError(f"question id {question.id!r} occurs twice; ids must be unique within a dataset")
        seen.add(question.id)
    kept: list[Question] = []
    answers: list[int] = []
    unusable: list[str] = []
    vocabulary = tokenizer.get_vocab()
    for question in questions:
        try:
            answers.append(answer_token(tokenizer, question, vocabulary))
            kept.append(question)
        except CulnigError:
            if on_unusable == "error":
                raise
            unusable.append(question.id)
    if not kept:
        raise CulnigError(f"none of the {len(questions)} questions has a one-token answer; is this the right tokenizer?")
    return EncodedQuestions(
        tuple(kept), tuple(encode_prompts(tokenizer, kept)), tuple(answers), tuple(unusable)
    )


def encode_prompts(tokenizer: Any, questions: Sequence[Question]) -> list[tuple[int, ...]]:
    """Tokens of each prompt; CulnigError when a prompt yields none.

    The tokenizer's own special tokens (a BOS) are added unless the prompt begins with one of them already, as a
    chat template's output does: a doubled BOS is a fault that nothing reports.
    """
    special = tuple(tokenizer.all_special_tokens)
    encoded: dict[int, tuple[int, ...]] = {}
    for complete in (False, True):
        rows = [i for i, q in enumerate(questions) if bool(special and q.prompt.startswith(special)) == complete]
        if rows:
            texts = [questions[i].prompt for i in rows]
            token_ids = tokenizer(texts, add_special_tokens=not complete)["input_ids"]
            encoded.update(zip(rows, map(tuple, token_ids), strict=True))
    for i, question in enumerate(questions):
        if not encoded[i]:
            raise CulnigError(f"the prompt of question {question.id!r} has no tokens; check its text and the tokenizer")
    return [encoded[i] for i in range(len(questions))]


def answer_token(tokenizer: Any, question: Question, vocabulary: dict[str, int] | None = None) -> int:
    """Vocabulary index of the bare answer label, looked up as such and never re-tokenised with the prompt.

    Raises:
        CulnigError: the vocabulary has no such token; names the question and what the label splits into.
    """
    vocabulary = tokenizer.get_vocab() if vocabulary is None else vocabulary
    token = vocabulary.get(question.answer)
    if token is None:
        pieces = tokenizer.tokenize(question.answer)
        raise CulnigError(
            f"the answer {question.answer!r} of question {question.id!r} is not one token of this tokenizer (it makes "
            f"{pieces}); use one-token labels, or leave such questions out with on_unusable='skip'"
        )
    return int(token)
