"""Running sums of activations: tokens at which a neuron is above 0, sums of samples' means.

A routed expert's neurons are counted over the tokens that reached the expert; any other token is absent there, not 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from culnig_fast.architecture import SiteLocation
from culnig_fast.batching import Batch
from culnig_fast.mixtures.experts import Routing

SUMS = ("positive", "means", "magnitudes")


class Counters:
    """Sums of each site on its own device, and the batch in progress."""

    def __init__(self, n_groups: int) -> None:
        self.n_groups = n_groups
        self.lengths = self.group = torch.zeros(0, dtype=torch.int64)
        self.positions = 0
        self._sums: dict[str, dict[Any, torch.Tensor]] = {name: {} for name in (*SUMS, "visits")}

    def begin(self, batch: Batch, group: torch.Tensor) -> None:
        """The batch whose activations come next, and the row of each of its samples, int64 [S]."""
        self.lengths, self.group, self.positions = batch.lengths, group, batch.input_ids.shape[1]

    def add(self, location: SiteLocation, act: torch.Tensor, routing: Routing | None = None) -> None:
        """Add a site's activation [S, T, K] of the batch in progress; [rows, K] with their routing."""
        if routing is not None:
            self._add_routed(location, act, routing)
            return
        lengths, group = self.lengths.to(act.device), self.group.to(act.device)
        padded = (torch.arange(act.shape[1], device=act.device) >= lengths[:, None])[:, :, None]
        act = act.masked_fill(padded, 0)
        per_token = lengths[:, None].double()
        for name, value in (
            ("positive", (act > 0).sum(1)),
            ("means", act.sum(1, dtype=torch.float64) / per_token),
            ("magnitudes", act.abs_().sum(1, dtype=torch.float64) / per_token),
        ):
            self._of(name, location, (self.n_groups, act.shape[2]), value).index_add_(0, group, value)

    def _add_routed(self, location: SiteLocation, act: torch.Tensor, routing: Routing) -> None:
        """Rows of pads are left out; a sample's mean is over its own rows at the expert."""
        experts = location.site.experts
        lengths, group = self.lengths.to(act.device), self.group.to(act.device)
        sample, position = routing.tokens // self.positions, routing.tokens % self.positions
        real = (position < lengths[sample]).nonzero().flatten()
        act, sample, expert = act[real], sample[real], routing.experts[real]
        segment = sample * experts + expert
        share = 1 / torch.bincount(segment, minlength=len(lengths) * experts)[segment].double()[:, None]
        place = group[sample] * experts + expert
        shape = (self.n_groups * experts, act.shape[1])
        for name, value in (
            ("positive", (act > 0).long()),
            ("means", act.double() * share),
            ("magnitudes", act.double().abs() * share),
        ):
            self._of(name, location, shape, value).index_add_(0, place, value)
        visits = torch.ones_like(place)
        self._of("visits", location, shape[:1], visits).index_add_(0, place, visits)

    def _of(self, name: str, location: SiteLocation, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        sums = self._sums[name]
        if location.site not in sums:
            sums[location.site] = torch.zeros(shape, dtype=like.dtype, device=like.device)
        return sums[location.site]

    def joined(self, name: str, locations: Iterable[SiteLocation]) -> np.ndarray:
        """All sites of one sum, [groups, neurons]."""
        parts = [self._sums[name][location.site].view(self.n_groups, -1).cpu() for location in locations]
        return torch.cat(parts, dim=1).numpy()

    def visits(self, locations: Sequence[SiteLocation]) -> np.ndarray:
        """Real tokens that reached each routed expert, int64 [groups, experts of all sites], site after site."""
        routed = [location for location in locations if location.experts is not None]
        return self.joined("visits", routed) if routed else np.zeros((self.n_groups, 0), dtype=np.int64)
