"""Signals wait for the place where stopping loses nothing."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from culnig_fast.running.interrupts import STOPPING, held_signals


def test_signals_are_noted_and_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    with held_signals() as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert caught == [signal.SIGTERM, signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            os.getpid()  # somewhere for Python to deliver it
    assert [signal.getsignal(number) for number in STOPPING] == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_signals() as caught:
            os.kill(os.getpid(), signal.SIGINT)
            assert caught == []
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_hears_nothing() -> None:
    seen: list[list[int]] = []

    def work() -> None:
        with held_signals() as caught:
            seen.append(caught)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[]]
