"""The fast path: a decoder layer as one autograd function that scores its neurons in its own backward.

Forward runs one product for q|k|v and one for gate|up, keeps the hidden state before each norm, the projections'
outputs and nothing else, and leaves out what no gradient needs: weights are frozen. Backward recomputes rotation and
attention where memory is what counts, folds activation × gradient into the kernels that read both anyway, and ends at
the first layer's projections.

In the last layer only each sample's last position reaches the answer. There keys and values are computed for all
positions and everything else for the last alone; the other positions' scores of q, gate, up and act are exactly 0.
"""

from __future__ import annotations

from typing import Any

import torch
from culnig_kernels import allocate

from culnig_fast.errors import CulnigError
from culnig_fast.fused.joining import Joined
from culnig_fast.fused.operations import LayerOperations, Projected, Scoring, Turn
from culnig_fast.fused.parts import LayerParts, check_untouched
from culnig_fast.fused.trace import NotFusable


class FusedLayer(LayerOperations):
    """Stands in for one decoder layer's forward.

    Args:
        parts: what the layer is made of.
        qkv, gate_up: its joined projections.
        scoring: where scores go.
        first: no gradient is needed below this layer.
        last_position: only each sample's last position is needed of this layer's output.
    """

    def __init__(
        self,
        parts: LayerParts,
        qkv: Joined,
        gate_up: Joined,
        scoring: Scoring,
        *,
        first: bool = False,
        last_position: bool = False,
    ) -> None:
        super().__init__(parts, qkv, gate_up, scoring)
        self.first, self.last_position = first, last_position

    def __call__(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's output [S, T, H], or [S, 1, H] when only the last position is needed."""
        try:
            check_untouched(self.parts.inside)
        except NotFusable as error:
            raise CulnigError(f"{error}; hook the model before the attributor's block, or use path='taps'") from error
        cos, sin = kwargs[self.parts.positions]
        out = _Layer.apply(hidden, cos, sin, kwargs.get("attention_mask"), self)
        return (out,) if self.parts.returns_tuple else out


class _Layer(torch.autograd.Function):
    """z = x + P₁(attention(N₁(x))), y = z + P₂(mlp(N₂(z))), for frozen weights."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor | None, layer: FusedLayer
    ) -> torch.Tensor:
        with allocate.using(layer.scoring.pool):
            return _forward(ctx, x, cos, sin, mask, layer)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None, None]:
        layer: FusedLayer = ctx.layer
        with allocate.using(layer.scoring.pool):
            return _backward(ctx, dy, layer), None, None, None, None


def _forward(
    ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor | None, layer: FusedLayer
) -> torch.Tensor:
    parts, pool, last = layer.parts, layer.scoring.pool, None
    if layer.last_position and x.shape[1] > 1:
        last = layer.scoring.lengths().to(x.device) - 1
    n, _, rstd_x = layer.norm(x, parts.before_attention)
    projected = _project(layer, n, last)
    pool.give(n)
    del n
    turn, mask = _visible(cos, sin, mask, last, x.shape[1])
    leaves, attended = layer.attend(projected, turn, mask)
    o = layer.linear(attended.detach(), parts.o.weight, parts.o.bias)
    # On a CPU time counts; elsewhere the attention is run again in backward and nothing of it is kept.
    ctx.attention = (leaves, attended) if x.device.type == "cpu" else None
    del leaves, attended
    kept_o = rstd_o = kept_m = rstd_m = None
    branch = o
    if parts.after_attention is not None:
        branch, kept_o, rstd_o = layer.norm(o, parts.after_attention)
    residual = x if last is None else _rows(x, last)
    n, z, rstd_z = layer.norm(branch, parts.before_mlp, residual=residual)
    pool.give(branch)
    gate_up = layer.linear(n, layer.gate_up.weight, layer.gate_up.bias)
    pool.give(n)
    del n, o, branch
    h = layer.scoring.ops.gated_act(gate_up, parts.activation)
    branch = layer.linear(h, parts.down.weight, parts.down.bias)
    pool.give(h)
    del h
    if parts.after_mlp is not None:
        branch, kept_m, rstd_m = layer.norm(branch, parts.after_mlp)
    ctx.layer, ctx.turn = layer, turn
    ctx.save_for_backward(x, *projected, rstd_x, kept_o, rstd_o, z, rstd_z, gate_up, kept_m, rstd_m, mask, last)
    out = z + branch
    pool.give(branch)
    return out


def _backward(ctx: Any, dy: torch.Tensor, layer: FusedLayer) -> torch.Tensor | None:
    x, q, together, rstd_x, kept_o, rstd_o, z, rstd_z, gate_up, kept_m, rstd_m, mask, last = ctx.saved_tensors
    parts, pool, dy, projected = layer.parts, layer.scoring.pool, dy.contiguous(), Projected(q, together)
    lengths = layer.scoring.lengths().to(x.device)
    d = dy
    if parts.after_mlp is not None:
        d = layer.norm_backward(dy, kept_m, rstd_m, parts.after_mlp)
    d = _mlp_backward(layer, d, gate_up, lengths if last is None else torch.ones_like(lengths), last is not None)
    dz = layer.norm_backward(d, z, rstd_z, parts.before_mlp, d_residual=dy)
    pool.give(d)
    d = dz
    if parts.after_attention is not None:
        d = layer.norm_backward(dz, kept_o, rstd_o, parts.after_attention)
    leaves, attended = ctx.attention or layer.attend(projected, ctx.turn, mask)
    ctx.attention = None
    d_attended = layer.times(d, parts.o.weight)
    if parts.after_attention is not None:
        pool.give(d)
    gradients = layer.attention.gradients(attended, leaves, d_attended)
    # Views are of the graph, which the call above has freed; the values were of the leaves.
    pool.give(d_attended, *leaves[:2])
    del leaves, attended, d, d_attended
    d_projected = layer.turned_back(gradients, projected, ctx.turn, lengths)
    dx = None if layer.first else _input_gradient(layer, d_projected, x, rstd_x, dz, last)
    pool.give(*d_projected, dz)
    if not _graph_is_kept():
        pool.give(*projected, kept_o, z, gate_up, kept_m)
    return dx


def _input_gradient(
    layer: FusedLayer,
    d: Projected,
    x: torch.Tensor,
    rstd_x: torch.Tensor,
    dz: torch.Tensor,
    last: torch.Tensor | None,
) -> torch.Tensor:
    """Gradient of the layer's input, of what its projections and its residual add."""
    parts, weight, pool = layer.parts, layer.qkv.weight, layer.scoring.pool
    if last is None:
        dn = layer.times(d.together, weight)
        dx = layer.norm_backward(dn, x, rstd_x, parts.before_attention, d_residual=dz)
    else:
        assert d.q is not None
        dn = layer.times(d.together, weight[layer.queries :])
        samples = torch.arange(len(last), device=last.device)
        dn[samples, last] += layer.times(d.q, weight[: layer.queries])[:, 0]
        dx = layer.norm_backward(dn, x, rstd_x, parts.before_attention)
        dx[samples, last] += dz[:, 0]
    pool.give(dn)
    return dx


def _graph_is_kept() -> bool:
    """Whether the backward that runs may be run again, with what was saved for it."""
    kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return kept is None or bool(kept())


def _project(layer: FusedLayer, n: torch.Tensor, last: torch.Tensor | None) -> Projected:
    """q, k and v of the hidden state."""
    weight, bias, queries = layer.qkv.weight, layer.qkv.bias, layer.queries
    if last is None:
        return Projected(None, layer.linear(n, weight, bias))
    q = layer.linear(_rows(n, last), weight[:queries], None if bias is None else bias[:queries])
    return Projected(q, layer.linear(n, weight[queries:], None if bias is None else bias[queries:]))


def _visible(
    cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor | None, last: torch.Tensor | None, positions: int
) -> tuple[Turn, torch.Tensor | None]:
    """Angles of queries and keys, and the mask; for the last position, what it may look at."""
    if last is None:
        return Turn((cos, sin), (cos, sin)), mask
    queries = tuple(_rows(table.expand(len(last), -1, -1), last) for table in (cos, sin))
    if mask is None:
        mask = (torch.arange(positions, device=last.device) <= last[:, None])[:, None, None]
    else:
        rows = last[:, None, None, None].expand(-1, mask.shape[1], 1, positions)
        mask = mask[..., :positions].expand(len(last), -1, -1, -1).gather(2, rows)
    return Turn((queries[0], queries[1]), (cos, sin)), mask


def _mlp_backward(
    layer: FusedLayer, d: torch.Tensor, gate_up: torch.Tensor, lengths: torch.Tensor, last: bool
) -> torch.Tensor:
    """Gradient of the MLP's input; scores gate, up and act on the way."""
    gate, up = gate_up.chunk(2, dim=-1)
    pool, dh = layer.scoring.pool, layer.times(d, layer.parts.down.weight)
    if layer.parts.after_mlp is not None:
        pool.give(d)
    wanted = [name for name in ("gate", "up", "act") if layer.wants(name)]
    d_gate_up, scores = layer.scoring.ops.gated_act_backward(
        dh,
        gate,
        up,
        lengths,
        activation=layer.parts.activation,
        scores=wanted,
        reduction=layer.scoring.reduction,
    )
    layer.give(wanted, scores, last)
    pool.give(dh)
    d = layer.times(d_gate_up, layer.gate_up.weight)
    pool.give(d_gate_up)
    return d


def _rows(x: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """[S, 1, H] of x [S, T, H] at each sample's last position."""
    return x.gather(1, last[:, None, None].expand(-1, 1, x.shape[-1]))
