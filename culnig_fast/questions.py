"""A question as the engine takes it, and its tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
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
        CulnigError: a field is empty or is not text.
    """

    id: str
    group: str
    prompt: str
    answer: str

    def __post_init__(self) -> None:
        for name in ("id", "group", "prompt", "answer"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise CulnigError(
                    f"the {name} of question {self.id!r} is of type {type(value).__name__}; give it as text"
                )
            if not value:
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


@dataclass(frozen=True)
class SplitQuestions:
    """Questions sorted by whether their answer is one token of a vocabulary, each part in the order given."""

    usable: tuple[Question, ...]
    unusable: tuple[Question, ...]

    def describe(self, shown: int = 5) -> str:
        """One sentence that counts the questions left out and names the first few; empty without any."""
        if not self.unusable:
            return ""
        count, total = len(self.unusable), len(self.usable) + len(self.unusable)
        names = ", ".join(f"{question.id} ({question.answer!r})" for question in self.unusable[:shown])
        more = ", …" if count > shown else ""
        return f"{count} of {total} questions left out, their answer is not one token: {names}{more}"


def encode_questions(tokenizer: Any, questions: Iterable[Question], on_unusable: str = "error") -> EncodedQuestions:
    """Tokenise prompts and look up answers.

    Args:
        tokenizer: a Hugging Face tokenizer.
        questions: at least one, ids unique.
        on_unusable: what an answer that is not one token does: `error`, or `skip` (counted and named).

    Raises:
        CulnigError: no questions or something else, a repeated id, an empty prompt, an unusable answer, or none left;
            what was given as the tokenizer is none.
    """
    check_tokenizer(tokenizer)
    questions = listed(questions)
    if on_unusable not in ("error", "skip"):
        raise CulnigError(f"unknown choice {on_unusable!r} for unusable questions; choose error or skip")
    if not questions:
        raise CulnigError("there are no questions; check the file, the split and the countries asked for")
    check_unique_ids(questions)
    split = split_usable(tokenizer, questions)
    if split.unusable and on_unusable == "error":
        answer_token(tokenizer, split.unusable[0])
    kept = split.usable
    if not kept:
        raise CulnigError(
            f"none of the {len(questions)} questions has a one-token answer; is this the right tokenizer?"
        )
    tokens = {label: _find_token(tokenizer, label) for label in {question.answer for question in kept}}
    answers = tuple(token for question in kept if (token := tokens[question.answer]) is not None)
    left_out = tuple(question.id for question in split.unusable)
    return EncodedQuestions(kept, tuple(encode_prompts(tokenizer, kept)), answers, left_out)


def check_tokenizer(tokenizer: Any) -> None:
    """Raise CulnigError for anything that does not turn text into tokens, as a model that was given in its place."""
    if not (callable(tokenizer) and hasattr(tokenizer, "convert_tokens_to_ids")):
        raise CulnigError(
            f"the tokenizer is a {type(tokenizer).__name__}; give the model first and its tokenizer second "
            "(culnig_fast.models.load_model returns the two so)"
        )


def listed(questions: Iterable[Question]) -> list[Question]:
    """Questions as a list; CulnigError for anything else."""
    if not isinstance(questions, Iterable):
        raise CulnigError(f"the questions are a {type(questions).__name__}; give a list of culnig_fast.Question")
    questions = list(questions)
    for number, question in enumerate(questions):
        if not isinstance(question, Question):
            raise CulnigError(
                f"question number {number} is a {type(question).__name__}; give "
                "culnig_fast.Question(id, group, prompt, answer)"
            )
    return questions


def split_usable(tokenizer: Any, questions: Iterable[Question]) -> SplitQuestions:
    """Sort questions by whether `answer_token` finds their answer, for callers that leave the others out."""
    usable: list[Question] = []
    unusable: list[Question] = []
    known: dict[str, bool] = {}
    for question in questions:
        if question.answer not in known:
            known[question.answer] = _find_token(tokenizer, question.answer) is not None
        (usable if known[question.answer] else unusable).append(question)
    return SplitQuestions(tuple(usable), tuple(unusable))


def first_of_groups(questions: Iterable[Question], limit: int | None) -> list[Question]:
    """At most `limit` questions of each group, the first ones, in the order given; None keeps all."""
    seen: Counter[str] = Counter()
    kept = []
    for question in questions:
        seen[question.group] += 1
        if limit is None or seen[question.group] <= limit:
            kept.append(question)
    return kept


def check_unique_ids(questions: Iterable[Question]) -> None:
    """Raise CulnigError, naming the id, when two questions share one."""
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise CulnigError(f"question id {question.id!r} occurs twice; ids must be unique within a dataset")
        seen.add(question.id)


def encode_prompts(tokenizer: Any, questions: Sequence[Question]) -> list[tuple[int, ...]]:
    """Tokens of each question's prompt, by the rule of `encode_prompt`.

    Raises:
        CulnigError: a prompt yields no tokens; names the question.
    """
    encoded = _encode(tokenizer, [question.prompt for question in questions])
    for question, token_ids in zip(questions, encoded, strict=True):
        if not token_ids:
            raise CulnigError(f"the prompt of question {question.id!r} has no tokens; check its text and the tokenizer")
    return encoded


def encode_prompt(tokenizer: Any, prompt: str | Question) -> list[int]:
    """Tokens of one prompt.

    The tokenizer's own opening special tokens (a BOS) are added, unless the text begins with one of the
    tokenizer's special tokens already, as a chat template's output does: a doubled BOS is a fault that no
    error reports. A template whose output begins with ordinary text gets the BOS. Closing special tokens (an
    EOS) are never added: the answer is read from the prompt's last token.

    Raises:
        CulnigError: the text yields no tokens; names the question when one was given.
    """
    text = prompt.prompt if isinstance(prompt, Question) else prompt
    token_ids = _encode(tokenizer, [text])[0]
    if not token_ids:
        name = f"of question {prompt.id!r}" if isinstance(prompt, Question) else repr(text)
        raise CulnigError(f"the prompt {name} has no tokens; check its text and the tokenizer")
    return list(token_ids)


def prompt_offsets(
    tokenizer: Any, questions: Sequence[Question], token_ids: Sequence[Sequence[int]]
) -> list[tuple[tuple[int, int], ...]]:
    """(start, end) characters of every token in its question's prompt.

    Args:
        tokenizer: one that knows them (a "fast" one).
        questions: of the prompts.
        token_ids: theirs, as `encode_prompts` gives them.

    Raises:
        CulnigError: the tokenizer does not know them.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise CulnigError(
            f"{type(tokenizer).__name__} does not say which characters its tokens stand for; load the fast tokenizer, "
            "or choose positions by their numbers"
        )
    special = _special_tokens(tokenizer)
    found = []
    for question, ids in zip(questions, token_ids, strict=True):
        text = question.prompt
        encoded = tokenizer(text, add_special_tokens=not text.startswith(special), return_offsets_mapping=True)
        if tuple(encoded["input_ids"][: len(ids)]) != tuple(ids):
            raise CulnigError(f"the tokens given for question {question.id!r} are not its prompt's; encode it again")
        found.append(tuple((int(start), int(end)) for start, end in encoded["offset_mapping"][: len(ids)]))
    return found


def answer_token(tokenizer: Any, question: Question) -> int:
    """Vocabulary index of the bare answer label, looked up as such and never tokenised with the prompt.

    Under SentencePiece this is `A` and not `▁A`. The unknown token never counts, and neither does an entry
    that stands for other text (a byte-level vocabulary spells é as `Ã©`).

    Raises:
        CulnigError: the vocabulary has no such token; names the question and what the label splits into.
    """
    token = _find_token(tokenizer, question.answer)
    if token is None:
        raise CulnigError(
            f"the answer {question.answer!r} of question {question.id!r} is not one token of this tokenizer "
            f"(it makes {tokenizer.tokenize(question.answer)}); use one-token labels, or leave such "
            "questions out (--skip-unusable, in Python on_unusable='skip')"
        )
    return token


def _find_token(tokenizer: Any, label: str) -> int | None:
    token = tokenizer.convert_tokens_to_ids(label)
    # A missing entry comes back as the unknown token, or as None where there is none.
    if token is None or token == tokenizer.unk_token_id:
        return None
    # Evaluation compares the decoded prediction with the label, so the entry must stand for the label's text.
    return int(token) if tokenizer.decode([token]).strip() == label else None


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[tuple[int, ...]]:
    special = _special_tokens(tokenizer)
    encoded: list[tuple[int, ...]] = [()] * len(texts)
    for opened in (False, True):
        rows = [i for i, text in enumerate(texts) if text.startswith(special) == opened]
        if rows:
            token_ids = tokenizer([texts[i] for i in rows], add_special_tokens=not opened)["input_ids"]
            for i, row in zip(rows, token_ids, strict=True):
                encoded[i] = tuple(row) if opened else _without_closing(tokenizer, texts[i], tuple(row))
    return encoded


def _special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Special tokens as text: the named ones (bos_token, …) and every added token that is marked special."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    marked = (str(token) for token in added if getattr(token, "special", False))
    return tuple({token for token in (*tokenizer.all_special_tokens, *marked) if token})


def _without_closing(tokenizer: Any, text: str, token_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Cut the special tokens that the tokenizer put after the text; those that end the text itself stay."""
    if not token_ids or token_ids[-1] not in tokenizer.all_special_ids:
        return token_ids
    bare = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    for end in range(len(token_ids), len(bare) - 1, -1):
        if token_ids[end - len(bare) : end] == bare:
            return token_ids[:end]
    return token_ids
