"""The operations on a CPU in compiled code: one pass over memory each, in the machine's vector instructions.

What the loops do not take (float16, mixed types, packed samples, the last position, exact GELU) goes to
`culnig_kernels.cpu`; without the extension all does.
"""

from __future__ import annotations

from culnig_kernels.native.gated import ACTIVATIONS, gated_act, gated_act_backward
from culnig_kernels.native.heads import qkv_backward, rotary, rotary_backward
from culnig_kernels.native.norm import rms_norm, rms_norm_backward
from culnig_kernels.native.scores import REDUCTIONS, actgrad_reduce

__all__ = [
    "ACTIVATIONS",
    "REDUCTIONS",
    "actgrad_reduce",
    "gated_act",
    "gated_act_backward",
    "qkv_backward",
    "rms_norm",
    "rms_norm_backward",
    "rotary",
    "rotary_backward",
]
