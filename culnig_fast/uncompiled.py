"""A model that was compiled is run as it is written: compiled code looks at no hook."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import torch


class _Uncompiled:
    """The block that `uncompiled` enters: one for the process, whose compiler has one stance."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._stance: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._stance = torch.compiler.set_stance("force_eager")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._stance.__exit__(None, None, None)


_block = _Uncompiled()


def uncompiled() -> contextlib.AbstractContextManager[None]:
    """Inside the block `torch.compile` is without effect, as torch's stance `force_eager` says.

    The stance is the process's. So that two threads do not restore each other's, it is set by the first block that is
    entered and put back by the last one that is left.
    """
    return _block
