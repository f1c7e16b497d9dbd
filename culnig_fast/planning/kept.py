"""Bytes that attribution keeps between forward and backward, for each token.

What an ordinary forward pass keeps is counted by running it without values; what the fused layers keep follows from
`fused/layer.py`, whose list of saved tensors is written out in `_fused_per_token`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from culnig_fast.mixtures.probe import Mixture
from culnig_fast.planning.fake_model import taps_per_token
from culnig_fast.planning.layers import LayerShape, Widths


@dataclass(frozen=True)
class Activations:
    """Bytes kept between forward and backward for each token.

    Layers with routed experts are never fused: what they keep on taps stands for them in every number. It is None, as
    `taps` is, where the family does not run on fake tensors.

    Attributes:
        fused: with every layer fused, on a GPU, where attention is run again in backward.
        fused_cpu: the same on a CPU, which keeps the attention.
        taps: with every layer on taps, in samples of the planned length; None where the family does not run on fake
            tensors.
        recomputed: with layers recomputed one at a time: each layer's input, and one layer.
        working: what one layer's backward needs beside that, estimated from its gradients.
        logits: a sample, not a token: three float32 copies of the last position's logits.
    """

    fused: int | None
    fused_cpu: int | None
    taps: int | None
    recomputed: int | None
    working: int
    logits: int


def kept_per_token(
    model: Any,
    layers: nn.ModuleList,
    mixtures: Sequence[Mixture | None],
    widths: Widths,
    wanted: Iterable[str],
    size: int,
    length: int,
) -> Activations:
    """Bytes for each token.

    Args:
        model: of fake tensors; it loses layers, so it comes last.
        layers, mixtures, widths: the model's.
        wanted: module names that are scored.
        size: bytes of a value.
        length: tokens of a sample.
    """
    depth = len(widths.layers)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    taps = taps_per_token(model, layers, mixtures, wanted, length)

    def kept(index: int, cpu: bool, last: bool) -> int | None:
        if widths.layers[index].experts:
            return None if taps is None else taps.layers[index]
        return _fused_per_token(widths, widths.layers[index], size, last, cpu)

    def whole(cpu: bool) -> int | None:
        each = [kept(index, cpu, index == depth - 1) for index in range(depth)]
        if None in each:
            return None
        # Beside layers that are not fused the model keeps what it keeps for them: rotations, the last norm's input.
        around = taps.around if taps is not None and any(layer.experts for layer in widths.layers) else 0
        return sum(value for value in each if value is not None) + around

    one = [kept(index, False, False) for index in range(depth)]
    largest = None if None in one else max(value for value in one if value is not None)
    return Activations(
        fused=whole(False),
        fused_cpu=whole(True),
        taps=None if taps is None else sum(taps.layers) + taps.around,
        recomputed=None if largest is None else depth * widths.hidden * size + largest,
        working=max(_gradients(widths, layer) for layer in widths.layers) * size,
        logits=3 * 4 * vocabulary,
    )


def _gradients(widths: Widths, layer: LayerShape) -> int:
    """Columns of a layer's gradients that exist together, those of each copy of a token at an expert included."""
    copies = 2 * layer.active * widths.hidden
    return 3 * layer.columns + copies + 3 * widths.hidden + 2 * (layer.queries + 2 * layer.keys)


def _fused_per_token(widths: Widths, layer: LayerShape, size: int, last: bool, cpu: bool) -> int:
    """Bytes a token of one fused layer: what its forward saves, each storage once.

    x, q|k|v, z, gate|up, what the norms after attention and MLP read, and a float32 for each norm. On a CPU also
    rotated q and k, what attention puts out, and its float32 sums. The last layer keeps x, k|v and a norm; on a CPU
    also rotated k, k and v once more for each query head where heads share them, and the last position's mask.
    """
    if last:
        shared = 2 * layer.queries if layer.keys < layer.queries else 0
        attention = (layer.keys + shared) * size + size + 1 if cpu else 0
        return (widths.hidden + 2 * layer.keys) * size + 4 + attention
    kept = widths.hidden * widths.norms + layer.queries + 2 * layer.keys + 2 * layer.intermediate
    attention = (2 * layer.queries + layer.keys) * size + 4 * layer.heads if cpu else 0
    return kept * size + 4 * widths.norms + attention
