"""Where the neurons of a set lie among the sites that are scored."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from culnig_fast.architecture import SiteLocation
from culnig_fast.errors import CulnigError
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.neurons import NeuronSite


def watched_places(
    locations: Sequence[SiteLocation], watch: NeuronSet
) -> dict[NeuronSite, tuple[torch.Tensor, torch.Tensor]]:
    """Site → (columns of it that are watched, their places in the set), int64 each.

    Raises:
        CulnigError: a neuron of the set is not among the sites.
    """
    sites = {(location.site.module_name, location.site.layer_idx): location.site for location in locations}
    found: dict[NeuronSite, tuple[list[int], list[int]]] = {}
    for place, neuron in enumerate(watch):
        site = sites.get((neuron.module_name, neuron.layer_idx))
        if site is None or neuron.neuron_idx >= site.width:
            raise CulnigError(
                f"neuron {neuron.neuron_idx} of {neuron.module_name} in layer {neuron.layer_idx} is to be watched but "
                "is not scored; is the set of another model, or the site left out?"
            )
        columns, places = found.setdefault(site, ([], []))
        columns.append(neuron.neuron_idx)
        places.append(place)
    return {site: (torch.tensor(columns), torch.tensor(places)) for site, (columns, places) in found.items()}
