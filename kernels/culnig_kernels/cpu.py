"""Activation × gradient on a CPU: blocks of one sample at a time that stay in cache.

The plain formulation makes a [S, T, K] product and passes over it twice more, through main memory. Here a block of at
most `_BLOCK` products is written and reduced before the next one takes its place, and padding is never read. Measured
on 2 cores, one thread, 16 × 128 tokens, 1,536 columns: 0.9 ms in place of 3.7 in float32, 1.0 in place of 13 in bf16.
"""

from __future__ import annotations

import torch

from culnig_kernels.reference.precision import work_dtype
from culnig_kernels.reference.scores import check_actgrad

_BLOCK = 2**18
"""Elements of the reused product: 1 MiB of float32 stays in a core's second-level cache."""


@torch.no_grad()
def actgrad_reduce(
    act: torch.Tensor,
    grad: torch.Tensor,
    lengths: torch.Tensor,
    reduction: str = "max",
    padding: str = "exclude",
) -> torch.Tensor:
    """`reference.actgrad_reduce` for right-padded CPU tensors; the maximum is the same to the last bit.

    Args, returns and errors as there, without packed samples.
    """
    check_actgrad(act, grad, lengths, reduction, padding)
    work = work_dtype(act, grad)
    samples, positions, columns = act.shape
    out = torch.empty(samples, columns, dtype=work)
    buffer = torch.empty(max(_BLOCK, positions), dtype=work)
    reduce = torch.amax if reduction == "max" else torch.sum
    for sample, length in enumerate(lengths.tolist()):
        step = max(1, len(buffer) // length)
        for first in range(0, columns, step):
            block = slice(first, min(columns, first + step))
            product = buffer[: length * (block.stop - first)].view(length, block.stop - first)
            # Widened first: a product of two bf16 tensors would be rounded to bf16.
            product.copy_(act[sample, :length, block])
            product.mul_(grad[sample, :length, block])
            reduce(product, 0, out=out[sample, block])
    if padding == "zero" and reduction == "max":
        padded = lengths < positions
        out[padded] = out[padded].clamp_(min=0.0)  # keeps NaN
    return out
