"""Triton's interpreter, made to round as GPUs do and to run beside any NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch


def as_on_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 becomes bfloat16 by rounding to nearest even, as on GPUs; the interpreter cuts it off, and slowly."""
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


def beside_any_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 3.7 Triton makes a loop's bound of an array [1] in a way that NumPy refuses from 2.4 on."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)
