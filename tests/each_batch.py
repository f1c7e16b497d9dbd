"""A look at each batch while it is scored."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from culnig_fast.running.loop import Loop


def around_each_batch(monkeypatch: pytest.MonkeyPatch, look: Callable[[], AbstractContextManager[Any]]) -> None:
    """Enter `look()` around each batch, from its making to its last accumulation."""
    score = Loop._score_part

    def looked_at(self: Loop, *args: Any) -> Any:
        with look():
            return score(self, *args)

    monkeypatch.setattr(Loop, "_score_part", looked_at)
