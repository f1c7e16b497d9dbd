"""What every kernel computes, in plain torch: the oracle of its tests and the path of machines without
Triton.

Each function has the signature of the launcher of the same name. It works in float32, in float64 for float64 inputs.
"""

from __future__ import annotations

from typing import Literal

from culnig_kernels.reference.gated import gated_act, gated_act_backward
from culnig_kernels.reference.norm import rms_norm, rms_norm_backward
from culnig_kernels.reference.qkv import qkv_backward
from culnig_kernels.reference.rotary import rotary, rotary_backward
from culnig_kernels.reference.scores import accumulate, actgrad_reduce, check_accumulate, check_actgrad

Reduction = Literal["max", "sum", "mean", "absmax", "last"]
Padding = Literal["exclude", "zero"]

__all__ = [
    "Padding",
    "Reduction",
    "accumulate",
    "actgrad_reduce",
    "check_accumulate",
    "check_actgrad",
    "gated_act",
    "gated_act_backward",
    "qkv_backward",
    "rms_norm",
    "rms_norm_backward",
    "rotary",
    "rotary_backward",
]
