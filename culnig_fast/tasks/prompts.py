"""From a message to the text that a model sees, and options in an order that never changes."""

from __future__ import annotations

import contextlib
import hashlib
import random
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

from culnig_fast.errors import CulnigError, CulnigWarning

ANSWER_PREFIX = '{"answer_choice":"'
"""Begins the model's answer, so that the next token is the option's label (CULNIG, section 4)."""

_PLAIN: weakref.WeakSet[Any] = weakref.WeakSet()
"""Tokenizers without a template of which that was said."""

_ANY_MESSAGE = "Any message at all"
"""Rendered to see what a template puts around a message; its words stand in no template."""


def render(tokenizer: Any, message: str, answer_prefix: str = ANSWER_PREFIX) -> str:
    """The message in the tokenizer's chat template (generation prompt added, thinking off), then the prefix.

    A tokenizer without a template gets the message, a line break and the prefix. Special tokens that the
    template does not write are left to `questions.encode_prompt`.

    Raises:
        CulnigError: the chat template cannot render a single user message.

    Warns:
        CulnigWarning: there is no template; once for a tokenizer.
    """
    if not getattr(tokenizer, "chat_template", None):
        _say_plain(tokenizer)
        return f"{message}\n{answer_prefix}"
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": message}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # a template that knows no thinking ignores it
        )
    except Exception as error:  # a template is a program of its own and can raise anything
        raise CulnigError(
            f"the tokenizer's chat template fails on a user message ({type(error).__name__}: {error}); "
            "repair it, or set tokenizer.chat_template to None for plain text"
        ) from error
    return f"{text}{answer_prefix}"


def _say_plain(tokenizer: Any) -> None:
    if tokenizer in _PLAIN:
        return
    with contextlib.suppress(TypeError):  # somebody's own class may not be one that can be remembered
        _PLAIN.add(tokenizer)
    warnings.warn(
        "this tokenizer has no chat template, so its model sees the messages as plain text; for one that was trained "
        "on chats set tokenizer.chat_template, or add chat_template.jinja to its folder",
        CulnigWarning,
        stacklevel=3,
    )


def chat_frame(tokenizer: Any) -> tuple[str, str]:
    """What `render` puts before a message, and what between it and the answer's prefix.

    Raises:
        CulnigError: the tokenizer has no chat template, or one of which no such halves can be told.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise CulnigError(
            "this tokenizer has no chat template, so a message's own text cannot be told; give a function that says "
            "which positions count"
        )
    before, found, after = render(tokenizer, _ANY_MESSAGE, "").partition(_ANY_MESSAGE)
    if not (found and after) or _ANY_MESSAGE in after:
        raise CulnigError(
            "this tokenizer's chat template does not show a message between two fixed texts; give a function that says "
            "which positions count"
        )
    return before, after


def seeded(key: str) -> random.Random:
    """A generator seeded by the first 8 hex digits of the key's md5, the same on every machine."""
    return random.Random(int(hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()[:8], 16))


def shuffled(key: str, options: Sequence[str]) -> list[str]:
    """The options in an order that depends on `key` alone."""
    order = list(options)
    seeded(key).shuffle(order)
    return order


def option_lines(labels: Sequence[str], options: Sequence[str]) -> str:
    """`A. first`, `B. second`, …, a line each."""
    return "\n".join(f"{label}. {option}" for label, option in zip(labels, options, strict=True))
