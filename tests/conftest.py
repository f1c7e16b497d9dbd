"""Settings shared by all tests."""

from __future__ import annotations

import os
import signal

import interpreter as triton_interpreter
import pytest
import torch

# Triton decides when it is imported whether kernels are interpreted, and some of what the tests import brings it in.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell's background ignores SIGINT, and the commands that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that launch kernels: where there is no GPU they are interpreted."""
    if not torch.cuda.is_available():
        triton_interpreter.as_on_hardware(monkeypatch)
        triton_interpreter.beside_any_numpy(monkeypatch)
