"""Where NaN and infinity were first seen on a sample's way forward and back."""

from __future__ import annotations

import torch

from culnig_fast.architecture import SiteLocation
from culnig_fast.mixtures.experts import Routing
from culnig_fast.neurons import NeuronLayout, NeuronSite


class Sightings:
    """The first element that is not finite of every activation and gradient, of each sample.

    Args:
        layout: of the sites that are looked at.

    Attributes:
        sample: the one that runs by itself now.
    """

    def __init__(self, layout: NeuronLayout) -> None:
        self.sample = 0
        sites = list(layout.sites)
        self._steps = [("activation", site) for site in sites] + [("gradient", site) for site in reversed(sites)]
        self._turn = len(sites)
        self._found: dict[tuple[int, str, NeuronSite], tuple[int, float]] = {}

    def look(
        self, location: SiteLocation, act: torch.Tensor, grad: torch.Tensor, routing: Routing | None = None
    ) -> None:
        """What a tap shows of the sample that runs."""
        for what, tensor in (("activation", act), ("gradient", grad)):
            rows = tensor.detach().reshape(-1, tensor.shape[-1])
            bad = (~torch.isfinite(rows)).nonzero()
            if len(bad):
                row, column = bad[0].tolist()
                expert = 0 if routing is None else int(routing.experts[row])
                first = 0 if location.held is None else location.held.start
                place = first + expert * tensor.shape[-1] + column
                self._found[self.sample, what, location.site] = place, float(rows[row, column])

    def first(self, sample: int, log_p: float) -> tuple[int, str] | None:
        """Where a sample went wrong first, as its place in the order of computation and in words; None if nowhere.

        Args:
            sample: as `sample` was set.
            log_p: of it.
        """
        for place, (what, site) in enumerate(self._steps):
            if place == self._turn and not torch.isfinite(torch.tensor(log_p)):
                return place, f"its logits give log P = {log_p}, after activations that are finite"
            if (sample, what, site) in self._found:
                column, value = self._found[sample, what, site]
                module = f"{site.module_name} in layer {site.layer_idx}"
                # The logits come between; so a gradient's place is one further.
                return place + (what == "gradient"), f"the {what} of neuron {column} of {module} is {value}"
        return None
