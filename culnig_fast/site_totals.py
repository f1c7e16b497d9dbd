"""Sums of scores per group, a tensor a site, each where its scores are made; divided as the weights are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from culnig_fast.architecture import SiteLocation
from culnig_fast.divided import Division
from culnig_fast.errors import CulnigError
from culnig_fast.neurons import NeuronLayout, NeuronSite
from culnig_fast.quantised import device_of


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
        self._of: dict[NeuronSite, torch.Tensor] = {}

    def of(self, location: SiteLocation, device: torch.device | None = None) -> torch.Tensor:
        """A site's totals, moved to `device` where that is given; before there are any, where its weights are."""
        device = self.device or device
        if location.site not in self._of:
            where = device or device_of(location.module)
            # Weights that are fetched when their layer runs are on no device until then.
            where = torch.device("cpu") if where.type == "meta" else where
            shape = (self.n_groups, location.width)
            self._of[location.site] = torch.zeros(shape, dtype=torch.float64, device=where)
        totals = self._of[location.site]
        if device is not None and totals.device != device:
            totals = self._of[location.site] = totals.to(device)
        return totals

    @property
    def whole(self) -> torch.Tensor:
        """float64 [n_groups, neurons], on the device of the first site."""
        parts = [self._all_of(location) for location in self.locations]
        return torch.cat([part.to(parts[0].device) for part in parts], dim=1)

    def is_finite(self) -> bool:
        """Whether none is NaN or infinite; waits for the device, once for each."""
        flags: dict[torch.device, torch.Tensor] = {}
        for part in self._of.values():
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
