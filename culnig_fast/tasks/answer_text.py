"""Short answers as text: what is compared when a model's words are held against annotators' words."""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections.abc import Callable

LEMMATISER = "simplemma"
"""The package that lemmatises, an extra: `pip install culnig_fast[lemmas]`."""

LEMMA_LANGUAGES = {"English": "en", "Spanish": "es", "Greek": "el", "Indonesian": "id", "Persian": "fa"}
"""Languages it knows among BLEnD's, by its codes."""


def normalised(text: str) -> str:
    """Case, width, punctuation, articles and spacing taken off; letters, marks and digits stay.

    Marks stay because in Assamese, Amharic or Persian they tell words apart.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in text.replace("'", "").replace("’", ""))
    words = "".join(kept).split()
    if len(words) > 1 and words[0] in ("a", "an", "the"):
        words = words[1:]
    return " ".join(words)


def first_answer(text: str) -> str:
    """The answer in what a model wrote: its first line that says anything, without a leading `Answer:`."""
    for line in text.splitlines():
        if normalised(line):
            return re.sub(r"^\s*answer\s*:\s*", "", line, flags=re.IGNORECASE).strip()
    return ""


def lemmatiser(language: str) -> tuple[Callable[[str], str] | None, str]:
    """A function that lemmatises normalised text, or None, and a sentence that says which and why."""
    if language not in LEMMA_LANGUAGES:
        return None, f"{language}: no lemmatiser, answers are compared as written"
    try:
        library = importlib.import_module(LEMMATISER)
    except ImportError:
        return None, f"{language}: {LEMMATISER} is not installed (extra lemmas), answers are compared as written"
    code = LEMMA_LANGUAGES[language]

    def lemmas(text: str) -> str:
        return " ".join(str(library.lemmatize(word, lang=code)).casefold() for word in text.split())

    return lemmas, f"{language}: answers are compared by lemmas too ({LEMMATISER})"
