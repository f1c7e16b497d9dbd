"""What one decoder layer computes, by parts: its joined products, norms and attention, on whichever device it lies.

On a CPU results lie in the pool that the layers share, and whoever is the last to read one gives it back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from culnig_kernels import allocate
from torch.nn import functional as F

from culnig_fast.architecture import SiteLocation
from culnig_fast.attention import SteadyAttention
from culnig_fast.backend import Operations
from culnig_fast.fused.joining import Joined
from culnig_fast.fused.parts import LayerParts, Norm
from culnig_fast.neurons import NeuronSite


@dataclass(frozen=True)
class Scoring:
    """What a fused layer asks of the attributor, and gives it.

    Attributes:
        ops: the numeric operations.
        reduction: over a sample's positions.
        wanted: the sites to score.
        lengths: int64 [S] real tokens of each sample of the batch that is running.
        add: takes sites, their scores [S, ΣK] side by side, and whether they are of each sample's last position alone.
        pool: memory that the layers hand to each other, on a CPU.
    """

    ops: Operations
    reduction: str
    wanted: frozenset[NeuronSite]
    lengths: Callable[[], torch.Tensor]
    add: Callable[[Sequence[SiteLocation], torch.Tensor, bool], None]
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
        self.attention = SteadyAttention()
        self._head_norms = HeadNorms(parts)

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
        self, projected: Projected, turn: Turn, mask: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Rotate and attend, ready for backward.

        Args:
            projected: what the projections put out.
            turn: the angles of the queries and of the keys.
            mask: what the model gave the layer; None is causal.

        Returns:
            rotated q, rotated k and v as leaves, and the attention's output [S, ·, queries].
        """
        parts, keys, (q, together) = self.parts, self.keys, projected
        turned = self._rotated(together[..., :-keys], turn.keys, self._head_norms.of("k" if q is not None else "qk"))
        query = turned[..., :-keys] if q is None else self._rotated(q, turn.queries, self._head_norms.of("q"))
        with torch.enable_grad():
            leaves = [
                leaf.detach().requires_grad_(True) for leaf in (query, turned[..., -keys:], together[..., -keys:])
            ]
            query, key, value = (leaf.unflatten(-1, (-1, parts.head_dim)).transpose(1, 2) for leaf in leaves)
            groups = self.queries // self.keys
            if mask is not None and groups > 1:
                # With a mask, grouped heads would leave the fused attention kernels.
                key, value = (h[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) for h in (key, value))
            out = self.attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=mask is None and q is None,
                scale=parts.scale,
                enable_gqa=mask is None and groups > 1,
            )
            return leaves, out.transpose(1, 2).flatten(2)

    def turned_back(
        self,
        gradients: Sequence[torch.Tensor],
        projected: Projected,
        turn: Turn,
        lengths: torch.Tensor,
    ) -> Projected:
        """Gradient of what the projections put out, from those of what `attend` made of it; scores it on the way."""
        ops, dim, reduction, norms = self.scoring.ops, self.parts.head_dim, self.scoring.reduction, self._head_norms
        (q, together), (d_q, d_k, d_v) = projected, gradients
        own = None
        if q is not None:
            one = torch.ones_like(lengths)
            own, scores = ops.rotary_backward(
                d_q, q, *turn.queries, dim, one, score=self.wants("q"), reduction=reduction, **norms.of("q")
            )
            self.give("q", scores, True)
        names = "qkv" if q is None else "kv"
        whole, scores = ops.qkv_backward(
            together, d_q if q is None else None, d_k, d_v, *turn.keys, dim, lengths,
            score=any(map(self.wants, names)), reduction=reduction, **norms.both,
        )  # fmt: skip
        self.give(names, scores, False)
        return Projected(own, whole)

    def give(self, names: Sequence[str], scores: torch.Tensor | None, last: bool) -> None:
        """Hand on the scores [S, ΣK] of sites, which lie side by side; those that nobody asked for are left out."""
        if scores is None:
            return
        sites = [self.site(name) for name in names]
        if all(map(self.wants, names)):
            self.scoring.add(sites, scores, last)
            return
        for name, site, columns in zip(names, sites, scores.split([site.width for site in sites], dim=-1), strict=True):
            if self.wants(name):
                self.scoring.add([site], columns, last)

    def site(self, name: str) -> SiteLocation:
        """By what the operations call it: q, k, v, gate, up or act."""
        return self.parts.sites[_SITES[name]]

    def wants(self, name: str) -> bool:
        """Whether the site is scored."""
        return self.site(name).site in self.scoring.wanted

    def _rotated(
        self, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], norm: dict[str, Any]
    ) -> torch.Tensor:
        turned: torch.Tensor = self.scoring.ops.rotary(x, *angles, self.parts.head_dim, **norm)
        return turned


class Projected(NamedTuple):
    """What the projections of the attention put out, or its gradient.

    Attributes:
        q: [S, 1, queries] of each sample's last position; None where the queries are with the rest.
        together: [S, T, queries + 2 keys], or [S, T, 2 keys] beside a q of its own.
    """

    q: torch.Tensor | None
    together: torch.Tensor


@dataclass(frozen=True)
class Turn:
    """(cos, sin) for the queries' positions and for the keys'."""

    queries: tuple[torch.Tensor, torch.Tensor]
    keys: tuple[torch.Tensor, torch.Tensor]


class HeadNorms:
    """Arguments of the rotary operations for the norms of a layer's heads; none where it has none.

    Attributes:
        both: for queries and keys, each with the row of the weight that is its own.
    """

    def __init__(self, parts: LayerParts) -> None:
        self.both: dict[str, Any] = {}
        norms = parts.query_norm, parts.key_norm
        if norms[0] is not None and norms[1] is not None:
            weight = torch.stack([norms[0].module.weight.detach(), norms[1].module.weight.detach()])
            self.both = {"weight": weight, **norms[0].settings}
        queries = parts.sites["self_attn.q_proj"].site.width // parts.head_dim
        self._of = {"qk": {**self.both, "queries": queries} if self.both else {}}
        for row, name in enumerate("qk"):
            self._of[name] = {**self.both, "weight": self.both["weight"][row]} if self.both else {}

    def of(self, heads: str) -> dict[str, Any]:
        """For `q`, for `k`, or for both side by side, `qk`."""
        return self._of[heads]


_SITES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "act": "mlp.act",
}


def _into(x: torch.Tensor, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x as rows, and memory for a product [..., columns] of them."""
    return x.reshape(-1, x.shape[-1]), allocate.empty((*x.shape[:-1], columns), x.dtype, x.device)
