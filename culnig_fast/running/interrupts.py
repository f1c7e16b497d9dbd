"""SIGINT and SIGTERM: held back until work reaches a point at which it can stop, or heeded at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from culnig_fast.errors import Interrupted

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def held_signals() -> Iterator[list[int]]:
    """Inside the block SIGINT and SIGTERM only fill the list; the caller looks at it where stopping loses nothing.

    A signal that is ignored, as SIGINT is in a shell's background, stays so. A second SIGINT raises KeyboardInterrupt
    on the spot: somebody does not want to wait for the batch. Outside the main thread, where Python delivers no
    signals, the list stays empty.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in caught:
            raise KeyboardInterrupt
        caught.append(number)

    heeded = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    earlier = {number: signal.signal(number, note) for number in heeded}
    try:
        yield caught
    finally:
        for number, handler in earlier.items():
            # None: a handler that was not set from Python and that Python cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def terminated() -> Iterator[None]:
    """Inside the block SIGTERM raises Interrupted on the spot, as SIGINT raises KeyboardInterrupt.

    For work whose steps are too long to wait for. An ignored SIGTERM stays so; outside the main thread nothing changes.
    """
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, "stopped by SIGTERM")

    earlier = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if earlier is None else earlier)
