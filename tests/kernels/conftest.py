"""Kernels run on the GPU where there is one, else on the CPU in Triton's interpreter.

The interpreter must be chosen before triton is first imported.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    if "triton" in sys.modules:
        raise pytest.UsageError("triton was imported before tests/kernels; run with TRITON_INTERPRET=1")
    os.environ["TRITON_INTERPRET"] = "1"

import families
from culnig_kernels import allocate


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return families.DEVICE


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write shows up as NaN."""
    empty = allocate.empty
    monkeypatch.setattr(allocate, "empty", lambda *args: empty(*args).fill_(float("nan")))


@pytest.fixture(autouse=True)
def _interpreted(interpreter: None) -> None:
    """Every test of this folder launches kernels."""
