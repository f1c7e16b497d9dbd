"""Sums of scores per group, each site's where its scores are made; divided as the weights are.

Sites of one layer that sit in one module, such as q, k and v, lie side by side in one block, so that scores which come
side by side are added in one go.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from culnig_fast.architecture import SiteLocation
from culnig_fast.divided import Division
from culnig_fast.errors import CulnigError
from culnig_fast.neurons import NeuronLayout, NeuronSite
from culnig_fast.quantised import device_of

_Key = tuple[int, str]
"""Of a block: layer, and path of the module that the sites sit in."""


class _Place(NamedTuple):
    """Where a site's totals are: in which block, and its columns there."""

    block: _Key
    columns: slice


class SiteTotals:
    """float64 [n_groups, K] of every site, K its neurons in this process.

    Args:
        locations: the sites, in the order of the layout.
        layout: of all of them.
        n_groups: rows.
        division: the processes among which the weights are divided, which then all ask for `whole` and `is_finite`.

    Attributes:
        device: where all of them are; None leaves each where its scores are.
    """

    def __init__(
        self,
        locations: Sequence[SiteLocation],
        layout: NeuronLayout,
        n_groups: int,
        division: Division | None = None,
    ) -> None:
        self.locations, self.layout, self.n_groups = tuple(locations), layout, n_groups
        self._division = division
        self.device: torch.device | None = None
        self._sites: dict[_Key, list[SiteLocation]] = {}
        self._places: dict[NeuronSite, _Place] = {}
        self._blocks: dict[_Key, torch.Tensor] = {}
        for location in self.locations:
            key = location.site.layer_idx, location.site.module_name.rpartition(".")[0]
            block = self._sites.setdefault(key, [])
            start = self._places[block[-1].site].columns.stop if block else 0
            self._places[location.site] = _Place(key, slice(start, start + location.width))
            block.append(location)

    def of(self, location: SiteLocation, device: torch.device | None = None) -> torch.Tensor:
        """A site's totals; its block is moved to `device` where that is given, and starts where its weights are."""
        return self._block(location, device)[:, self._places[location.site].columns]

    def neighbours(self, location: SiteLocation) -> Sequence[SiteLocation]:
        """The sites that lie side by side with this one, itself among them, in their order."""
        return self._sites[self._places[location.site].block]

    def together(self, locations: Sequence[SiteLocation], device: torch.device) -> torch.Tensor | None:
        """The totals [n_groups, ΣK] of sites that lie side by side in this order; None when these do not."""
        places = [self._places[location.site] for location in locations]
        for one, other in itertools.pairwise(places):
            if one.block != other.block or one.columns.stop != other.columns.start:
                return None
        return self._block(locations[0], device)[:, places[0].columns.start : places[-1].columns.stop]

    def _block(self, location: SiteLocation, device: torch.device | None) -> torch.Tensor:
        device, key = self.device or device, self._places[location.site].block
        if key not in self._blocks:
            where = device or device_of(location.module)
            # Weights that are fetched when their layer runs are on no device until then.
            where = torch.device("cpu") if where.type == "meta" else where
            width = sum(one.width for one in self._sites[key])
            self._blocks[key] = torch.zeros((self.n_groups, width), dtype=torch.float64, device=where)
        if device is not None and self._blocks[key].device != device:
            self._blocks[key] = self._blocks[key].to(device)
        return self._blocks[key]

    def whole(self, device: torch.device | str | None = None) -> torch.Tensor:
        """float64 [n_groups, neurons] on a device; None is that of the first site, where it takes as much again."""
        where = self._all_of(self.locations[0]).device if device is None else device
        return torch.cat([self._all_of(location).to(where) for location in self.locations], dim=1)

    def reserve(self) -> None:
        """Take the memory of all of them now, where their weights are."""
        for location in self.locations:
            self.of(location)

    def is_finite(self) -> bool:
        """Whether none is NaN or infinite; waits for the device, once for each."""
        flags: dict[torch.device, torch.Tensor] = {}
        for part in self._blocks.values():
            finite = part.isfinite().all()
            flags[part.device] = flags[part.device] & finite if part.device in flags else finite
        broken = any(not bool(flag) for flag in flags.values())
        return not broken if self._division is None else self._division.most(float(broken)) == 0

    def restore(self, totals: torch.Tensor) -> None:
        """Start from earlier totals, float64 [n_groups, neurons]; CulnigError when the shape does not fit."""
        if totals.shape != (self.n_groups, self.layout.size) or totals.dtype != torch.float64:
            raise CulnigError(
                f"totals to restore are {totals.dtype} {list(totals.shape)}, but float64 "
                f"[{self.n_groups}, {self.layout.size}] are needed"
            )
        for location in self.locations:
            where = self.layout.slice(location.site.module_name, location.site.layer_idx)
            columns = totals[:, where]
            held = location.held
            self.of(location).copy_(columns if held is None else columns[:, held.start : held.stop])

    def _all_of(self, location: SiteLocation) -> torch.Tensor:
        own = self.of(location)
        if location.held is None or self._division is None:
            return own
        return self._division.whole(own)
