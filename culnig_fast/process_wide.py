"""Settings of the whole process, which threads must not restore one for another."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable


class ProcessWide:
    """A block whose setting is made by the first thread that enters it and put back by the last one that leaves it.

    Args:
        setting: gives the context that makes it and puts back what was there.
    """

    def __init__(self, setting: Callable[[], contextlib.AbstractContextManager[object]]) -> None:
        self._setting = setting
        self._lock = threading.Lock()
        self._inside = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._stack.enter_context(self._setting())
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._stack.close()
