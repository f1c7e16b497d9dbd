"""What one decoder layer computes, by parts: its joined products, norms and attention, on whichever device it lies.

On a CPU results lie in the pool that the layers share, and whoever is the last to read one gives it back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from culnig_kernels import allocate
from torch.nn import functional as F

from culnig_fast.architecture import SiteLocation
from culnig_fast.backend import Operations
from culnig_fast.fused.joining import Joined
from culnig_fast.fused.parts import LayerParts, Norm, norm_arguments
from culnig_fast.neurons import NeuronSite


@dataclass(frozen=True)
class Scoring:
    """What a fused layer asks of the attributor, and gives it.

    Attributes:
        ops: the numeric operations.
        reduction: over a sample's positions.
        wanted: the sites to score.
        lengths: int64 [S] real tokens of each sample of the batch that is running.
        add: takes a site, its scores [S, K], and whether they are of each sample's last position alone.
        pool: memory that the layers hand to each other, on a CPU.
    """

    ops: Operations
    reduction: str
    wanted: frozenset[NeuronSite]
    lengths: Callable[[], torch.Tensor]
    add: Callable[[SiteLocation, torch.Tensor, bool], None]
    pool: allocate.Pool = field(default_factory=allocate.Pool)


class LayerOperations:
    """The operations of one layer, on frozen weights.

    Args:
        parts: what the layer is made of.
        qkv, gate_up: its joined projections.
        scoring: where scores go.
    """

    def __init__(self, parts: LayerParts, qkv: Joined, gate_up: Joined, scoring: Scoring) -> None:
        self.parts, self.qkv, self.gate_up, self.scoring = parts, qkv, gate_up, scoring
        self.queries = parts.sites["self_attn.q_proj"].site.width
        self.keys = parts.sites["self_attn.k_proj"].site.width

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x @ weight.T + bias."""
        if x.device.type != "cpu":
            return F.linear(x, weight, bias)
        flat, out = _into(x, len(weight))
        if bias is None:
            torch.mm(flat, weight.t(), out=out.flatten(0, -2))
        else:
            torch.addmm(bias, flat, weight.t(), out=out.flatten(0, -2))
        return out

    def times(self, d: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """d @ weight, the gradient of `linear`'s input."""
        if d.device.type != "cpu":
            return d @ weight
        flat, out = _into(d, weight.shape[1])
        torch.mm(flat, weight, out=out.flatten(0, -2))
        return out

    def norm(self, x: torch.Tensor, norm: Norm, residual: torch.Tensor | None = None) -> Any:
        """(norm, what was normalised, 1 / rms)."""
        ops, weight = self.scoring.ops, norm.module.weight.detach()
        return ops.rms_norm(x, weight, norm.eps, offset=norm.offset, residual=residual)

    def norm_backward(
        self,
        dy: torch.Tensor,
        z: torch.Tensor,
        rstd: torch.Tensor,
        norm: Norm,
        d_residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Gradient of what was normalised."""
        ops, weight = self.scoring.ops, norm.module.weight.detach()
        return ops.rms_norm_backward(dy, z, weight, rstd, offset=norm.offset, d_residual=d_residual)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, turn: Turn, mask: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Rotate and attend, ready for backward.

        Args:
            q: [S, T, queries], or [S, 1, queries] for the last position.
            k, v: [S, T, keys].
            turn: the angles of q and of k.
            mask: what the model gave the layer; None is causal.

        Returns:
            rotated q, rotated k and v as leaves, and the attention's output [S, ·, queries].
        """
        ops, parts = self.scoring.ops, self.parts
        leaves = [
            ops.rotary(q, *turn.queries, parts.head_dim, **norm_arguments(parts.query_norm)),
            ops.rotary(k, *turn.keys, parts.head_dim, **norm_arguments(parts.key_norm)),
            v.detach(),
        ]
        with torch.enable_grad():
            leaves = [leaf.requires_grad_(True) for leaf in leaves]
            query, key, value = (leaf.unflatten(-1, (-1, parts.head_dim)).transpose(1, 2) for leaf in leaves)
            groups = self.queries // self.keys
            if mask is not None and groups > 1:
                # With a mask, grouped heads would leave the fused attention kernels.
                key, value = (h[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) for h in (key, value))
            out = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=mask is None and q.shape[1] > 1,
                scale=parts.scale,
                enable_gqa=mask is None and groups > 1,
            )
            return leaves, out.transpose(1, 2).flatten(2)

    def give(self, name: str, scores: torch.Tensor | None, last: bool) -> None:
        """Hand a site's scores on."""
        if scores is not None:
            self.scoring.add(self.parts.sites[name], scores, last)

    def wants(self, name: str) -> bool:
        """Whether the site is scored."""
        return self.parts.sites[name].site in self.scoring.wanted


@dataclass(frozen=True)
class Turn:
    """(cos, sin) for the queries' positions and for the keys'."""

    queries: tuple[torch.Tensor, torch.Tensor]
    keys: tuple[torch.Tensor, torch.Tensor]


def _into(x: torch.Tensor, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x as rows, and memory for a product [..., columns] of them."""
    return x.reshape(-1, x.shape[-1]), allocate.empty((*x.shape[:-1], columns), x.dtype, x.device)
