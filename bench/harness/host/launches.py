"""Launches of Triton kernels: counted, and, where there is no GPU, led to a device that does nothing.

Up to that point they are real: the launchers' checks, torch's dispatcher, Triton's own look at the arguments and its
cache of compiled kernels.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from culnig_kernels import validate

from culnig_fast import backend

_DEVICE = 0
"""Number of the device that does nothing."""


class Switch:
    """Operations that run on the CPU until `on`, and from then on are launched and compute nothing."""

    def __init__(self) -> None:
        self.on = False
        self._launched, self._computed = vars(resolve_anyhow()), vars(backend.resolve("auto"))

    def _run(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return (self._launched if self.on else self._computed)[name](*args, **kwargs)

    def operations(self, name: str) -> backend.Operations:
        """In the place of `backend.resolve`."""
        return backend.Operations(**{each: functools.partial(self._run, each) for each in self._computed})


def resolve_anyhow() -> backend.Operations:
    """The Triton backend, though there is no GPU."""
    with mock.patch.object(torch.cuda, "is_available", lambda: True):
        return backend.resolve("triton")


@contextlib.contextmanager
def to_nowhere(compiled: Callable[[str, Any], None] = lambda kernel, key: None) -> Iterator[Switch]:
    """Inside the block launches of tensors on the CPU reach a device that does nothing.

    The model is to be made ready with the operations of the switch, which are proved and so must compute, and timed
    once it is on.

    Args:
        compiled: is told of each kernel that would be compiled, by name and by what it is compiled for.
    """
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    with contextlib.ExitStack() as stack:

        def compile_nothing(self: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
            compiled(self.__name__, key)
            stack.callback(self.device_caches.clear)  # or a real launch would later find what does nothing
            self.device_caches[_DEVICE][0][key] = _Compiled()
            return _Compiled()

        stack.callback(setattr, driver, "_active", driver._active)
        driver.set_active(_Driver())
        stack.enter_context(mock.patch.object(JITFunction, "_do_compile", compile_nothing))
        stack.enter_context(mock.patch.object(validate, "interpreted", lambda: True))
        # On a GPU lengths and groups are not looked at, for the host would wait for them.
        stack.enter_context(mock.patch.object(validate, "seen_by_host", lambda tensor: False))
        switch = Switch()
        stack.enter_context(mock.patch.object(backend, "resolve", switch.operations))
        yield switch


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Launches inside the block, by kernel."""
    from triton.runtime.jit import JITFunction

    found: Counter[str] = Counter()
    launch = JITFunction.run

    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        found[self.__name__] += 1
        return launch(self, *args, **kwargs)

    with mock.patch.object(JITFunction, "run", count):
        yield found


class _Compiled:
    """What Triton keeps of a kernel and calls to launch it."""

    function = packed_metadata = None

    def launch_metadata(self, *args: Any) -> None:
        return None

    def run(self, *args: Any) -> None:
        return None


class _Driver:
    """As much of a driver as a launch asks for."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return _DEVICE

    def get_current_stream(self, device: int) -> int:
        return 0
