"""LAPE and CAPE: neurons whose chance of being active differs most between languages or cultures.

LAPE (Tang et al., ACL 2024): p[g, n] is the share of group g's tokens at which gate neuron n is active. Normalised over
the groups it is a distribution; its entropy is low when few groups use the neuron. The neurons of lowest entropy
are chosen among those active enough somewhere, and belong to the groups where they are active enough. CAPE (Namazifard
and Galke, 2025) is the same over cultures, less what is chosen for languages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from culnig_fast.baselines.activations import ActivationTable
from culnig_fast.errors import CulnigError
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.selection.pools import mlp_modules_of


@dataclass(frozen=True)
class EntropySelection:
    """What LAPE or CAPE chose.

    Attributes:
        neurons: all of them, lowest entropy first; a neuron's score is minus its entropy in nats.
        by_group: the neurons of each group, in the same order; a neuron may belong to several.
    """

    neurons: NeuronSet
    by_group: dict[str, NeuronSet]


def activation_entropy(probability: np.ndarray) -> np.ndarray:
    """Entropy in nats of each neuron's activation probabilities over the groups, float64 [neurons].

    Args:
        probability: [groups, neurons]; a neuron that is active nowhere gets entropy 0.
    """
    total = probability.sum(0)
    share = np.divide(probability, total, out=np.zeros(probability.shape), where=total > 0)
    logarithm = np.log(share, out=np.zeros(share.shape), where=share > 0)
    entropy: np.ndarray = np.maximum(-(share * logarithm).sum(0), 0.0)  # −0 would be printed
    return entropy


def select_by_entropy(
    table: ActivationTable,
    *,
    share: float = 0.01,
    percentile: float = 95.0,
    module_names: Iterable[str] | None = None,
    exclude: NeuronSet | None = None,
    method: str = "lape",
) -> EntropySelection:
    """Choose the neurons whose activity depends most on the group.

    The bar is the `percentile` of all probabilities (the round(count · percentile / 100)-th smallest, as the LAPE
    program takes it). Of the neurons above it in some group, the round(pool · share) of lowest entropy are chosen,
    equal ones in flat order, and each is given to every group in which it is above the bar.

    Args:
        table: counters, e.g. of `count_activations`; two groups at least.
        share: part of the pool that is chosen, 0 to 1.
        percentile: above 0, at most 100.
        module_names: the pool; by default `mlp.gate_proj` (`mlp.up_proj` where the model has no gate).
        exclude: neurons that may not be chosen, e.g. those of languages when cultures are asked for.
        method: what `info` calls it.

    Raises:
        CulnigError: fewer than two groups, a group without tokens, an option out of range, or modules not counted.
    """
    if len(table.groups) < 2:
        raise CulnigError(f"entropy over groups needs two groups or more; the counters have {', '.join(table.groups)}")
    if (table.tokens < 1).any():
        raise CulnigError(f"group {table.groups[int(np.argmin(table.tokens))]!r} has no tokens; count some or drop it")
    if not 0 <= share <= 1 or not 0 < percentile <= 100:
        raise CulnigError(f"share {share} must lie in 0…1 and percentile {percentile} in 0…100")
    pool = table.layout.indices(mlp_modules_of(table.layout) if module_names is None else module_names)
    probability = np.asarray(table.probability()[:, pool])
    entropy = activation_entropy(probability)
    position = max(1, round(probability.size * percentile / 100)) - 1
    bar = float(np.partition(probability, position, axis=None)[position])
    above = np.asarray(probability > bar)
    eligible = np.asarray(above.any(0))
    if exclude is not None:
        known = exclude.where(gone) if (gone := _shared_modules(exclude, table)) else NeuronSet.empty()
        eligible &= ~np.isin(pool, known.flat(table.layout))
    order = np.argsort(np.where(eligible, entropy, np.inf), kind="stable")[: round(len(pool) * share)]
    chosen = order[eligible[order]]
    info: dict[str, Any] = {
        "selection": method,
        "neurons": len(chosen),
        "pool": len(pool),
        "share": share,
        "percentile": percentile,
        "bar": bar,
        "above_the_bar": int(eligible.sum()),
        "groups": {name: int(above[row, chosen].sum()) for row, name in enumerate(table.groups)},
        "source": table.metadata,
    }

    def named(rows: np.ndarray, **facts: Any) -> NeuronSet:
        return NeuronSet.from_flat(table.layout, pool[rows], -entropy[rows], {**info, "neurons": len(rows), **facts})

    by_group = {name: named(chosen[above[row, chosen]], group=name) for row, name in enumerate(table.groups)}
    return EntropySelection(named(chosen), by_group)


def _shared_modules(neurons: NeuronSet, table: ActivationTable) -> list[str]:
    return sorted(set(neurons.module_names) & set(table.layout.module_names))
