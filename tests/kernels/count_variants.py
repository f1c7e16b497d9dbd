"""Launches every kernel on batches of many sizes, to no device, and prints how often Triton would compile.

    python count_variants.py          # JSON on stdout: kernel → number of compilations

Run apart from the tests' process, where Triton may be in interpreter mode: here it must not be.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
from harness.host.launches import to_nowhere

LENGTHS, SAMPLES = (2, 15, 16, 33, 48, 700), (2, 5, 16, 40)
HEAD, HIDDEN, WIDE = 16, 64, 128


def main() -> None:
    """A layer's operations on each batch, in bf16."""
    found: dict[str, set[str]] = defaultdict(set)
    with to_nowhere(lambda kernel, key: found[kernel].add(str(key))) as switch:
        switch.on = True
        ops = switch.operations("auto")

        def tensor(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.bfloat16)

        for length in LENGTHS:
            for samples in SAMPLES:
                lengths = torch.ones(samples, dtype=torch.int64)
                x, qkv, gate_up = (tensor(samples, length, width) for width in (HIDDEN, 8 * HEAD, 2 * WIDE))
                cos = tensor(1, length, HEAD)
                _, z, rstd = ops.rms_norm(x, tensor(HIDDEN), 1e-6, residual=x)
                ops.rms_norm_backward(x, z, tensor(HIDDEN), rstd, d_residual=x)
                ops.rotary(qkv[..., : 6 * HEAD], cos, cos, HEAD)
                gradients = tensor(samples, length, 4 * HEAD), *(tensor(samples, length, 2 * HEAD) for _ in "kv")
                ops.qkv_backward(qkv, *gradients, cos, cos, HEAD, lengths, score=True)
                h = ops.gated_act(gate_up)
                gate, up = gate_up.chunk(2, dim=-1)
                _, scores = ops.gated_act_backward(h, gate, up, lengths, scores=("gate", "up"))
                ops.actgrad_reduce(h, h, lengths)
                totals = torch.zeros(2, 2 * WIDE, dtype=torch.float64)
                ops.accumulate(scores, torch.ones(samples, dtype=torch.float64), lengths * 0, totals)
    json.dump({kernel: len(keys) for kernel, keys in found.items()}, sys.stdout)


if __name__ == "__main__":
    main()
