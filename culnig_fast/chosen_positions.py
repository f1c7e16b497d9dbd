"""Which tokens of each prompt count in the reduction: by a name, or by the caller's own rule."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.questions import EncodedQuestions, Question, prompt_offsets
from culnig_fast.tasks.prompts import chat_frame

NAMES = ("all", "last", "content")
"""Every token; the last one; those of the user's message, without the chat template and the answer's beginning."""


class PromptTokens:
    """The tokens of one prompt, as a rule of positions sees them.

    Attributes:
        ids: vocabulary indices, as the model gets them.
    """

    def __init__(self, ids: tuple[int, ...], offsets: Callable[[], tuple[tuple[int, int], ...]]) -> None:
        self.ids = ids
        self._offsets = offsets

    @property
    def offsets(self) -> tuple[tuple[int, int], ...]:
        """(start, end) of each token's characters in the prompt; equal where a token stands for none (an added BOS).

        Raises:
            CulnigError: the tokenizer does not know them.
        """
        return self._offsets()

    def within(self, start: int, end: int) -> np.ndarray:
        """bool [tokens]: which have a character of prompt[start:end]; CulnigError as for `offsets`."""
        first, last = np.array(self.offsets, dtype=np.int64).reshape(-1, 2).T
        return np.asarray((first < last) & (first < end) & (last > start))


PositionRule = str | Callable[[Question, PromptTokens], Iterable[int] | Iterable[bool]] | None
"""A name, or a function that gives one bool a token, or the positions that count (negative ones from the end)."""


@dataclass(frozen=True)
class ChosenPositions:
    """What a rule chose of every prompt.

    Attributes:
        rule: a name that differs wherever the choice may differ on the same questions: that of the rule, and for the
            caller's own one a digest of what it chose.
        marks: bool [tokens] of each prompt; None means every token.
    """

    rule: str = "all"
    marks: tuple[np.ndarray, ...] | None = None


def choose_positions(rule: PositionRule, tokenizer: Any, encoded: EncodedQuestions) -> ChosenPositions:
    """Apply a rule to every prompt.

    Raises:
        CulnigError: an unknown name, a prompt that the rule cannot be applied to or of which it chooses nothing.
    """
    if rule is None or rule == "all":
        return ChosenPositions()
    if not callable(rule) and rule not in NAMES:
        raise CulnigError(f"unknown positions {rule!r:.60}; choose from {', '.join(NAMES)}, or give a function")
    questions, token_ids = encoded.questions, encoded.token_ids
    # Of all prompts at once, and only when a rule asks for one's.
    offsets = functools.cache(lambda: prompt_offsets(tokenizer, questions, token_ids))

    def row(number: int) -> tuple[tuple[int, int], ...]:
        return offsets()[number]

    tokens = [PromptTokens(ids, functools.partial(row, number)) for number, ids in enumerate(token_ids)]
    if callable(rule):
        chosen = [_marks(rule(*pair), *pair) for pair in zip(questions, tokens, strict=True)]
    elif rule == "last":
        chosen = [np.arange(len(ids)) == len(ids) - 1 for ids in token_ids]
    else:
        chosen = _contents(tokenizer, questions, tokens)
    for question, marks in zip(questions, chosen, strict=True):
        if not marks.any():
            raise CulnigError(
                f"the positions asked for are no token of question {question.id!r}; choose one at least, or leave the "
                "question out"
            )
    name = f"{getattr(rule, '__name__', type(rule).__name__)} #{_digest(chosen)}" if callable(rule) else str(rule)
    return ChosenPositions(name, tuple(chosen))


def _marks(given: Any, question: Question, tokens: PromptTokens) -> np.ndarray:
    """What a caller's rule gave, as bool [tokens]."""
    count, name = len(tokens.ids), f"the positions of question {question.id!r}"
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise CulnigError(f"{name} are of type {type(given).__name__}; give one bool a token, or a list of positions")
    array = np.asarray(given if hasattr(given, "__array__") else list(given))
    if array.size == 0:
        return np.zeros(count, dtype=bool)
    if array.dtype == bool:
        if array.shape != (count,):
            raise CulnigError(f"{name} are {list(array.shape)} bools; its prompt has {count} tokens, give one each")
        return array
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise CulnigError(f"{name} are {array.dtype} {list(array.shape)}; give one bool a token, or whole numbers")
    if array.min() < -count or array.max() >= count:
        raise CulnigError(f"{name} reach from {array.min()} to {array.max()}; its prompt has tokens 0…{count - 1}")
    marks = np.zeros(count, dtype=bool)
    marks[array] = True
    return marks


def _contents(tokenizer: Any, questions: Sequence[Question], tokens: Sequence[PromptTokens]) -> list[np.ndarray]:
    """Tokens of each user's message: what stands between the chat template's two halves."""
    before, after = chat_frame(tokenizer)
    found = []
    for question, one in zip(questions, tokens, strict=True):
        start, end = len(before), question.prompt.rfind(after)
        if not question.prompt.startswith(before) or end < start:
            raise CulnigError(
                f"the prompt of question {question.id!r} is not one user message in this tokenizer's chat template; "
                "give a function that says which positions count"
            )
        if after in question.prompt[start:end]:
            raise CulnigError(
                f"the prompt of question {question.id!r} has several turns, of which 'content' knows but one; give a "
                "function that says which positions count"
            )
        found.append(one.within(start, end))
    return found


def _digest(marks: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for one in marks:
        digest.update(one.tobytes() + b"|")
    return digest.hexdigest()[:16]
