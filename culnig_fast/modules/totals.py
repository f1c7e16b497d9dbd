"""Sums of samples' scores per group, site by site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from culnig_fast.backend import Operations
from culnig_fast.errors import CulnigError
from culnig_fast.modules.scores import ModuleScores
from culnig_fast.modules.sites import ModuleLayout, ModuleSite
from culnig_fast.sample_weights import SampleWeights
from culnig_fast.version import __version__

Run = Callable[[Any], torch.Tensor]
"""Takes the model, runs it on a batch and gives the objective, [batch]."""

Found = Sequence[tuple[torch.Tensor, int]]
"""Of each site its scores, [batch, columns], and the width of its whole tensor."""


class GroupTotals:
    """What batches add up to.

    Args:
        sites: in the order of the totals.
        n_groups: rows.
        ops: the numeric operations.

    Attributes:
        parts: of each site float64 [n_groups, columns], on its device; none before the first batch.
    """

    def __init__(self, sites: Sequence[ModuleSite], n_groups: int, ops: Operations) -> None:
        if n_groups < 1:
            raise CulnigError(f"n_groups is {n_groups}; an attribution needs at least one group")
        self.sites, self.n_groups, self.ops = tuple(sites), n_groups, ops
        self.parts: list[torch.Tensor] = []
        self._counts: torch.Tensor | None = None
        self._layout: ModuleLayout | None = None

    @property
    def layout(self) -> ModuleLayout:
        """Which column is which neuron; known after the first batch, CulnigError before."""
        if self._layout is None:
            raise CulnigError("widths of the sites are known after the first batch; run one")
        return self._layout

    @property
    def whole(self) -> torch.Tensor:
        """float64 [n_groups, neurons], on the device of the first site; CulnigError before any."""
        _ = self.layout
        return joined(self.parts)

    def by_path(self) -> dict[str, torch.Tensor]:
        """Path → float64 [n_groups, columns], the parts themselves; see `ModuleLayout.by_path`."""
        return dict(zip(self.layout.by_path(), self.parts, strict=True))

    def layout_of(self, found: Found) -> ModuleLayout:
        """The layout of a batch; CulnigError when it is not that of those before."""
        layout = ModuleLayout(self.sites, [width for _, width in found])
        if self._layout is not None and layout != self._layout:
            raise CulnigError(f"the sites changed their width: {self._layout!r} before, {layout!r} now")
        return layout

    def add(self, found: Found, weights: SampleWeights) -> None:
        """Add a batch; CulnigError, before anything is added, when its layout differs."""
        layout = self.layout_of(found)
        if self._layout is None:
            self._layout = layout
            shapes = [(self.n_groups, scores.shape[1]) for scores, _ in found]
            self.parts = [
                torch.zeros(shape, dtype=torch.float64, device=scores.device)
                for shape, (scores, _) in zip(shapes, found, strict=True)
            ]
        for (scores, _), totals in zip(found, self.parts, strict=True):
            weights.add(scores, totals, self.ops)
        counts = weights.counts(self.n_groups)
        self._counts = counts if self._counts is None else self._counts + counts.to(self._counts.device)

    def table(
        self, groups: Sequence[str] | None, objective: str, reduction: str, metadata: dict[str, Any]
    ) -> ModuleScores:
        """A copy of the sums on the CPU with names; groups None means `all`, or `0`, `1`, … of several.

        Raises:
            CulnigError: no batch was added, or the names are not as many as the groups.
        """
        layout = self.layout
        names = tuple(map(str, range(self.n_groups))) if self.n_groups > 1 else ("all",)
        names = names if groups is None else tuple(groups)
        if len(names) != self.n_groups:
            raise CulnigError(f"{len(names)} names were given for {self.n_groups} groups; give one each")
        totals = self.whole.to("cpu", copy=True).numpy()
        assert self._counts is not None
        facts = {"culnig_fast": __version__, **metadata}
        return ModuleScores(totals, layout, names, self._counts.cpu().numpy().copy(), objective, reduction, facts)


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sites' tensors side by side, on the device of the first."""
    return torch.cat([part.to(parts[0].device) for part in parts], dim=1)


def checked_objective(objective: Any) -> torch.Tensor:
    """A scalar a sample, [batch]; CulnigError for anything else."""
    if not isinstance(objective, torch.Tensor) or objective.dim() != 1 or not len(objective):
        what = list(objective.shape) if isinstance(objective, torch.Tensor) else f"a {type(objective).__name__}"
        raise CulnigError(f"objective must be [batch], a scalar a sample, not {what}")
    return objective
