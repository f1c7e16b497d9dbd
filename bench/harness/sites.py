"""Where the neurons are in the benchmark's models, by the names their families give the projections.

The engine finds them by structure. The other methods, and the check that ours must pass, look here, so that
an error of the engine's discovery shows as a mismatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

SITE_NAMES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")


@dataclass(frozen=True)
class Site:
    """One site: columns of a projection's output."""

    name: str
    layer: int
    module: nn.Module
    columns: slice


def find_sites(model: Any) -> list[Site]:
    """Every scored site in flat order: layer, then q, k, v, gate, up."""
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    inner = config.intermediate_size
    sites = []
    for index, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        if hasattr(attention, "qkv_proj"):
            projections = [attention.qkv_proj] * 3
            starts = [0, queries, queries + keys]
        else:
            projections, starts = [attention.q_proj, attention.k_proj, attention.v_proj], [0, 0, 0]
        if hasattr(mlp, "gate_up_proj"):
            projections += [mlp.gate_up_proj] * 2
            starts += [0, inner]
        else:
            projections += [mlp.gate_proj, mlp.up_proj]
            starts += [0, 0]
        widths = [queries, keys, keys, inner, inner]
        for name, module, start, width in zip(SITE_NAMES, projections, starts, widths, strict=True):
            sites.append(Site(name, index, module, slice(start, start + width)))
    return sites
