"""Scores written straight from the method: one sample at a time, all in float64, a full backward of P, plain loops.

Nothing here shares code with the engine: modules are found by the names that each family gives them, prompts go
through the model unpadded, and P itself is differentiated.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

ORDER = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.act",
)


def decoder_layers(model: Any) -> Any:
    """The list of decoder layers, by the attribute names of the families tested."""
    inner = model.model
    inner = getattr(inner, "language_model", inner)
    return inner.layers


def activation_tensors(model: Any) -> tuple[dict[tuple[str, int], torch.Tensor], list[Any]]:
    """Hooks that fill (module name, layer) → the whole projection output, in the graph, with retained gradient."""
    kept: dict[tuple[str, int], torch.Tensor] = {}
    handles = []

    def keep(key: tuple[str, int]) -> Any:
        def hook(module: Any, args: Any, output: torch.Tensor) -> None:
            output.retain_grad()
            kept[key] = output

        return hook

    def keep_input(key: tuple[str, int]) -> Any:
        def hook(module: Any, args: Any) -> None:
            args[0].retain_grad()
            kept[key] = args[0]

        return hook

    for index, layer in enumerate(decoder_layers(model)):
        modules = {
            name: getattr(getattr(layer, parent), child, None)
            for name in (*ORDER, "self_attn.qkv_proj", "mlp.gate_up_proj")
            for parent, child in [name.split(".")]
        }
        for name, module in modules.items():
            if module is not None:
                handles.append(module.register_forward_hook(keep((name, index))))
        handles.append(layer.mlp.down_proj.register_forward_pre_hook(keep_input(("mlp.act", index))))
    return kept, handles


def columns_of(model: Any, name: str, index: int, kept: dict[tuple[str, int], torch.Tensor]) -> tuple[Any, Any]:
    """(activation, gradient), each [tokens, neurons], of one site; fused projections cut by hand."""
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    q, kv = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    if (name, index) in kept:
        whole, cut = kept[name, index], slice(None)
    elif name.startswith("self_attn"):
        starts = {
            "self_attn.q_proj": (0, q),
            "self_attn.k_proj": (q, q + kv),
            "self_attn.v_proj": (q + kv, q + 2 * kv),
        }
        whole, cut = kept["self_attn.qkv_proj", index], slice(*starts[name])
    else:
        inner = config.intermediate_size
        starts = {"mlp.gate_proj": (0, inner), "mlp.up_proj": (inner, 2 * inner)}
        whole, cut = kept["mlp.gate_up_proj", index], slice(*starts[name])
    assert whole.grad is not None
    return whole[0, :, cut].detach().numpy(), whole.grad[0, :, cut].numpy()


def sample_scores(
    model64: Any, tokens: Sequence[int], answer: int, sites: Sequence[str], reduction: str, pad_to: int = 0
) -> tuple[float, np.ndarray]:
    """P and the score of every neuron for one sample; `pad_to` > its length adds the published program's zero."""
    kept, handles = activation_tensors(model64)
    try:
        logits = model64(input_ids=torch.tensor([list(tokens)])).logits[0, -1]
        probability = torch.softmax(logits, 0)[answer]
        probability.backward()
    finally:
        for handle in handles:
            handle.remove()
    parts = []
    for index in range(len(decoder_layers(model64))):
        for name in ORDER:
            if name not in sites:
                continue
            act, grad = columns_of(model64, name, index, kept)
            best = act[0] * grad[0]
            for position in range(1, len(tokens)):
                product = act[position] * grad[position]
                best = np.maximum(best, product) if reduction == "max" else best + product
            if pad_to > len(tokens) and reduction == "max":
                best = np.maximum(best, 0.0)
            parts.append(best)
    model64.zero_grad()
    return float(probability.detach()), np.concatenate(parts)


def totals(
    model: Any,
    samples: Sequence[tuple[Sequence[int], int, int]],
    n_groups: int,
    sites: Sequence[str],
    *,
    reduction: str = "max",
    clamp: bool = False,
    batch_size: int | None = None,
) -> np.ndarray:
    """float64 [n_groups, neurons] for samples of (tokens, answer token, group); `batch_size` pads as in batches."""
    model64 = copy.deepcopy(model).cpu().double().eval().requires_grad_(True)
    rows: list[np.ndarray | None] = [None] * n_groups
    for position, (tokens, answer, group) in enumerate(samples):
        pad_to = 0
        if batch_size is not None:
            start = position - position % batch_size
            pad_to = max(len(other[0]) for other in samples[start : start + batch_size])
        probability, scores = sample_scores(model64, tokens, answer, sites, reduction, pad_to)
        weighted = probability * scores
        if clamp:
            weighted = np.maximum(weighted, 0.0)
        row = rows[group]
        rows[group] = weighted if row is None else row + weighted
    return np.stack([row for row in rows if row is not None])
