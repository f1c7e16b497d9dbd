"""Integrated gradients of routed experts: the path of one module's neurons over all experts of a layer.

A layer's router reads the hidden state before any of its experts, so along the path every token stays with the experts
that it went to, and each of those is given α times its activation: the baseline is "reached, and zero", not "absent". A
token that was not routed to an expert has no activation there and no share. Later layers' routers read what the path
changed and may send tokens elsewhere: P(α) then jumps, and the shares fall short of P(1) − P(0) by the jumps. They are
complete in the last layer, and wherever the later choice of experts stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from culnig_fast.architecture import SiteLocation
from culnig_fast.baselines.hooks import replaced_routed
from culnig_fast.errors import CulnigError
from culnig_fast.interleaved import cut, put
from culnig_fast.mixtures.experts import Routing


@dataclass(frozen=True)
class RoutedGradient:
    """A site's rows, one a token and expert that met; copy k of a sample stands behind all samples of copy k − 1.

    Attributes:
        act: [rows, K] unscaled activations.
        grad: [rows, K] ∂log P/∂ of the scaled ones.
        tokens: int64 [rows] places in the batch of all copies, pads included.
        experts: int64 [rows].
    """

    act: torch.Tensor
    grad: torch.Tensor
    tokens: torch.Tensor
    experts: torch.Tensor


def routed_gradient(
    location: SiteLocation, alpha: torch.Tensor, positions: int, log_p: Callable[[], torch.Tensor]
) -> RoutedGradient:
    """Run the model with sample r's activations scaled by α[r] and differentiate the sum of log P.

    Args:
        location: a site of routed experts.
        alpha: float64 [samples of all copies].
        positions: tokens of each sample with its padding.
        log_p: runs the model, [samples of all copies]; called once.
    """
    acts: list[torch.Tensor] = []
    leaves: list[torch.Tensor] = []
    routings: list[Routing] = []

    def scale(values: torch.Tensor, routing: Routing) -> torch.Tensor:
        leaf = values.detach().clone()
        own = cut(leaf, location.columns).clone()
        acts.append(own)
        by_row = alpha.to(leaf.device, leaf.dtype)[routing.tokens // positions]
        put(leaf, location.columns, own * by_row[:, None])
        leaves.append(leaf.requires_grad_(True))
        routings.append(routing)
        return leaf

    with replaced_routed(location, scale), torch.enable_grad():
        grads = torch.autograd.grad(log_p().sum(), leaves)
    device = acts[0].device
    return RoutedGradient(
        torch.cat([act.to(device) for act in acts]),
        torch.cat([cut(grad, location.columns).to(device) for grad in grads]),
        torch.cat([routing.tokens.to(device) for routing in routings]),
        torch.cat([routing.experts.to(device) for routing in routings]),
    )


class RoutedPath:
    """Sums a site's gradients along the path, and reduces them over each sample's real tokens at each expert.

    Args:
        lengths: real tokens of each sample.
        positions: tokens of each sample with its padding.
        experts: of the site.
    """

    def __init__(self, lengths: Sequence[int], positions: int, experts: int) -> None:
        self.lengths, self.positions, self.experts = torch.tensor(lengths), positions, experts
        self._keys: torch.Tensor | None = None

    def add(self, part: RoutedGradient, weight: torch.Tensor) -> None:
        """Add Σ over copies of weight · gradient.

        Args:
            part: some copies of the whole batch.
            weight: [samples of all copies].

        Raises:
            CulnigError: a copy's tokens went to other experts than the first copy's.
        """
        size = len(self.lengths) * self.positions
        copies = len(weight) // len(self.lengths)
        copy, token = part.tokens // size, part.tokens % size
        keys = token * self.experts + part.experts
        order = torch.argsort(copy * size * self.experts + keys)
        work = torch.float64 if part.act.dtype == torch.float64 else torch.float32
        weighted = part.grad.to(work) * weight.to(part.grad.device, work)[part.tokens // self.positions][:, None]
        if self._keys is None:
            first = order[: len(order) // copies]
            self._keys, self._act = keys[first], part.act[first].to(work)
            self._sum = torch.zeros_like(self._act)
        if not torch.equal(keys[order], self._keys.repeat(copies)):
            raise CulnigError(
                "rounding sent a token to other experts in a copy of its batch, so a path cannot be followed; use "
                "float32, or smaller batches (batch_tokens)"
            )
        self._sum += weighted[order].view(copies, *self._sum.shape).sum(0)

    def reduced(self, reduction: str, steps: int) -> torch.Tensor:
        """act · sum / steps by `sum` or `max`, [samples, experts · K]; 0 for an expert that no real token reached."""
        assert self._keys is not None
        values = self._act * self._sum / steps
        token, expert = self._keys // self.experts, self._keys % self.experts
        sample = token // self.positions
        real = token % self.positions < self.lengths.to(token.device)[sample]
        segment = (sample * self.experts + expert)[real, None].expand(-1, values.shape[1])
        out = values.new_zeros(len(self.lengths) * self.experts, values.shape[1])
        out.scatter_reduce_(0, segment, values[real], "amax" if reduction == "max" else "sum", include_self=False)
        return out.view(len(self.lengths), -1)
