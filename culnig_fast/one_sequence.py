"""Rows that hold one sequence each, of which transformers is told.

Without an attention mask transformers reads the positions back from the device to see whether a row holds several
sequences, so on a GPU each forward pass would wait for all that was launched before it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

_known: ContextVar[bool] = ContextVar("one sequence a row", default=False)


@contextlib.contextmanager
def one_sequence_a_row() -> Iterator[None]:
    """Inside the block, and this thread, no row of a model's inputs holds more than one sequence."""
    _teach()
    token = _known.set(True)
    try:
        yield
    finally:
        _known.reset(token)


@functools.cache
def _teach() -> None:
    """Once and for good: undone and redone around each pass, two threads would undo each other's."""
    from transformers import masking_utils

    look = getattr(masking_utils, "find_packed_sequence_indices", None)
    if look is None:  # this version looks nowhere, or elsewhere, and then it waits
        return

    @functools.wraps(look)
    def find_packed_sequence_indices(*args: Any, **kwargs: Any) -> Any:
        return None if _known.get() else look(*args, **kwargs)

    masking_utils.find_packed_sequence_indices = find_packed_sequence_indices
