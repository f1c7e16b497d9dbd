"""Kernels run on the GPU where there is one, else on the CPU in Triton's interpreter.

The interpreter must be chosen before triton is first imported.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    if "triton" in sys.modules:
        raise pytest.UsageError("triton was imported before tests/kernels; run with TRITON_INTERPRET=1")
    os.environ["TRITON_INTERPRET"] = "1"

from culnig_kernels import allocate


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write shows up as NaN."""
    empty = allocate.empty
    monkeypatch.setattr(allocate, "empty", lambda *args: empty(*args).fill_(float("nan")))


@pytest.fixture(autouse=True)
def rounding_of_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter cuts float32 down to bfloat16, and slowly; GPUs round to nearest even."""
    if torch.cuda.is_available():
        return
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def nearest(data: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
        if (source, target) == (tl.bfloat16, tl.float32):
            return (data.view(np.uint16).astype(np.uint32) << 16).reshape(data.shape)
        if (source, target) == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(np.ascontiguousarray(data)).to(torch.bfloat16)
            return rounded.view(torch.int16).numpy().view(np.uint16)
        return convert(data, source, target, rounding)

    monkeypatch.setattr(interpreter, "_convert_float", nearest)


@pytest.fixture(autouse=True)
def bounds_of_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 3.7 Triton's interpreter makes a loop's bound of an array [1] in a way that NumPy 2.4 refuses."""
    if torch.cuda.is_available():
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)
