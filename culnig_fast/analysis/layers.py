"""Where neurons lie: how many of each layer and module (CULNIG, section 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.neurons import MODULE_NAMES, NeuronLayout
from culnig_fast.selection.pools import default_modules

if TYPE_CHECKING:
    import pandas as pd

RANDOM = "random"
"""Name of the rows that stand for all random sets."""


def neurons_by_layer(
    sets: Mapping[str, NeuronSet], layout: NeuronLayout, random: Sequence[NeuronSet] = ()
) -> pd.DataFrame:
    """Neurons of each set in each layer and module, and their mean and spread over the random sets.

    Args:
        sets: name → set, e.g. `general`, `South Korea`.
        layout: the neurons there are.
        random: sets to compare with; their rows are named `random`.

    Returns:
        One row a set, layer and module, of the modules that are selected from by default and those that a set lies
        in: `set`, `layer`, `module`, `neurons` (a mean for the random sets), `sd` (over the random sets, n − 1; NaN
        elsewhere and for one set), `share` (of the set's neurons; 0 in an empty set), `density` (of the module's
        neurons in that layer), `width` (those neurons), `sets` (how many were averaged).

    Raises:
        CulnigError: a set is named `random`, or holds a neuron that the layout does not.
    """
    import pandas as pd

    if RANDOM in sets:
        raise CulnigError(f"a set is named {RANDOM!r}, which stands for the random sets here; name it otherwise")
    everything = [*sets.values(), *random]
    used = {name for one in everything for name in set(one.module_names)} | set(default_modules(layout))
    sites = [site for site in layout.sites if site.module_name in used]
    sites.sort(key=lambda site: (MODULE_NAMES.index(site.module_name), site.layer_idx))
    counts = {name: site_counts(one, layout) for name, one in sets.items()}
    rows: list[dict[str, Any]] = []
    for name, one in sets.items():
        for site in sites:
            n = counts[name][site.module_name, site.layer_idx]
            rows.append(_row(name, site, float(n), float("nan"), n / len(one) if len(one) else 0.0, 1))
    if random:
        drawn = [site_counts(one, layout) for one in random]
        for site in sites:
            own = np.array([one[site.module_name, site.layer_idx] for one in drawn], dtype=np.float64)
            sd = float(own.std(ddof=1)) if len(own) > 1 else float("nan")
            shares = [n / len(one) if len(one) else 0.0 for n, one in zip(own, random, strict=True)]
            rows.append(_row(RANDOM, site, float(own.mean()), sd, float(np.mean(shares)), len(random)))
    return pd.DataFrame(rows, columns=list(_row("", sites[0], 0.0, 0.0, 0.0, 0)))


def site_counts(neurons: NeuronSet, layout: NeuronLayout) -> dict[tuple[str, int], int]:
    """(module, layer) → neurons of the set there, for every site of the layout."""
    flat = np.sort(neurons.flat(layout))
    result = {}
    for site in layout.sites:
        where = layout.slice(site.module_name, site.layer_idx)
        first, last = np.searchsorted(flat, [where.start, where.stop])
        result[site.module_name, site.layer_idx] = int(last - first)
    return result


def _row(name: str, site: Any, neurons: float, sd: float, share: float, sets: int) -> dict[str, Any]:
    return {
        "set": name,
        "layer": site.layer_idx,
        "module": site.module_name,
        "neurons": neurons,
        "sd": sd,
        "share": share,
        "density": neurons / site.width,
        "width": site.width,
        "sets": sets,
    }
