"""Culture-general, culture-specific and random neuron sets from score tables (CULNIG, sections 5 to 7).

A neuron's score is d = s(neur) / N_neur − s(control) / N_control, with N the samples of the whole table.
Equal scores keep flat order: layer, then q, k, v, gate, up, act within the layer, then column.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.neurons import ATTENTION_MODULES, NeuronLayout, check_module_names
from culnig_fast.scores import ScoreTable
from culnig_fast.selection import ranking
from culnig_fast.selection.core import implementation
from culnig_fast.selection.inputs import check_countries, check_every_group, check_min_z, check_tables
from culnig_fast.selection.pools import (
    Pool,
    RankedPool,
    Tables,
    candidate_z,
    default_modules,
    describe,
    general_pools,
    module_ranges,
    rank_countries,
    rank_general,
)
from culnig_fast.tasks.countries import TARGET_COUNTRIES

if TYPE_CHECKING:
    from culnig_fast.selection.device import DeviceTable

__all__ = ["implementation", "select_general", "select_random", "select_specific", "select_specific_all"]


def select_general(
    neur: ScoreTable | DeviceTable,
    control: ScoreTable | DeviceTable | None,
    surface: ScoreTable | DeviceTable | None,
    *,
    mlp_share: float = 0.01,
    attention_share: float = 0.002,
    surface_share: float = 0.01,
    mlp_modules: Iterable[str] | None = None,
    attention_modules: Iterable[str] = ATTENTION_MODULES,
) -> NeuronSet:
    """Culture-general neurons: high on cultural questions, but not on naming a country (CULNIG, section 5).

    In each of two pools by itself, the top int(pool · share) of d, all groups summed, are candidates; those
    among the top int(pool · surface_share) of the pool on `surface`, all groups summed, are dropped. The set
    holds both pools in one list, descending by d.

    Args:
        neur: scores on cultural questions; a `DeviceTable` is ranked where its tensor is.
        control: scores on the same prompts without the question, or None to subtract nothing.
        surface: scores on CountryRC, or None to drop nothing.
        mlp_share, attention_share, surface_share: parts of a pool, 0 to 1.
        mlp_modules: the MLP pool; by default every gate (`mlp.gate_proj` and those of experts), or `mlp.up_proj` and
            the like where the model has no gate.
        attention_modules: the attention pool. An empty choice leaves a pool out.

    Raises:
        CulnigError: tables of different neurons or groups, without samples or with NaN totals; a share
            outside 0…1; a module that was not scored.
    """
    check_tables(neur, control, surface)
    tables = Tables(neur, control, surface)
    pools = general_pools(neur.layout, mlp_modules, attention_modules, [mlp_share], [attention_share])
    thresholds = {"mlp_share": mlp_share, "attention_share": attention_share, "surface_share": surface_share}
    return general_set(tables, rank_general(tables, pools, [surface_share]), thresholds)


def general_set(tables: Tables, ranked: Sequence[RankedPool], thresholds: dict[str, float]) -> NeuronSet:
    """The set that given thresholds choose of ranked pools."""
    chosen = [one.choose(thresholds[one.pool.share_name], thresholds["surface_share"]) for one in ranked]
    flat = np.concatenate([one.found.flat[keep] for one, (keep, _) in zip(ranked, chosen, strict=True)])
    scores = np.concatenate([one.found.scores[keep] for one, (keep, _) in zip(ranked, chosen, strict=True)])
    order = np.lexsort((flat, -scores))
    info = describe("general", thresholds, [facts for _, facts in chosen], tables)
    return NeuronSet.from_flat(tables.neur.layout, flat[order], scores[order], info)


def select_specific(
    neur: ScoreTable | DeviceTable,
    control: ScoreTable | DeviceTable | None,
    surface: ScoreTable | DeviceTable | None,
    country: str,
    *,
    share: float = 0.003,
    surface_share: float = 0.01,
    min_z: float = 0.5,
    module_names: Iterable[str] | None = None,
) -> NeuronSet:
    """Culture-specific neurons of one country: high there, and higher than elsewhere (CULNIG, section 6).

    In one pool, the top int(pool · share) of the country's d are candidates. Those among the top
    int(pool · surface_share) of the country's own scores on `surface` are dropped, and those whose d is less
    than `min_z` population standard deviations above its mean over all groups of `neur` (a deviation of 0
    means z = 0).

    Args:
        neur, control, surface: as for `select_general`.
        country: a group of `neur`, in any spelling that `tasks.countries` knows.
        share, surface_share: parts of the pool, 0 to 1.
        min_z: least z-score kept; -inf keeps every candidate.
        module_names: the pool; by default q, k, v and `mlp.gate_proj` (`mlp.up_proj` where the model has no
            gate).

    Raises:
        CulnigError: as for `select_general`; a table lacks the country; a group has no samples.
    """
    (chosen,) = select_specific_all(
        neur,
        control,
        surface,
        (country,),
        share=share,
        surface_share=surface_share,
        min_z=min_z,
        module_names=module_names,
    ).values()
    return chosen


def select_specific_all(
    neur: ScoreTable | DeviceTable,
    control: ScoreTable | DeviceTable | None,
    surface: ScoreTable | DeviceTable | None,
    countries: Iterable[str] = TARGET_COUNTRIES,
    *,
    share: float = 0.003,
    surface_share: float = 0.01,
    min_z: float = 0.5,
    module_names: Iterable[str] | None = None,
) -> dict[str, NeuronSet]:
    """The culture-specific neurons of several countries, in one sweep over the tables.

    Args:
        countries: groups of `neur`, in any spelling; by default the method's eight.
        neur, control, surface, share, surface_share, min_z, module_names: as for `select_specific`, which
            chooses the same set of each country.

    Returns:
        The set of each country, by its name in `neur`, in the order given.

    Raises:
        CulnigError: as for `select_specific`; a country is named twice, or none is.
    """
    countries = check_countries(countries)
    check_tables(neur, control, surface)
    check_every_group(neur, control)
    check_min_z(min_z)
    tables = Tables(neur, control, surface)
    ranked = rank_countries(tables, one_pool(neur.layout, module_names, [share]), countries, [surface_share])
    thresholds = {"share": share, "surface_share": surface_share, "min_z": min_z}
    result: dict[str, NeuronSet] = {}
    for (row, one), z in zip(ranked, candidate_z(tables, ranked), strict=True):
        if neur.groups[row] in result:
            raise CulnigError(f"country {neur.groups[row]} is named twice; name each once")
        result[neur.groups[row]] = specific_set(tables, row, one, z, thresholds)
    return result


def specific_set(
    tables: Tables, row: int, ranked: RankedPool, z: np.ndarray, thresholds: dict[str, float]
) -> NeuronSet:
    """The set that given thresholds choose of one country's ranked pool."""
    keep, facts = ranked.choose(thresholds["share"], thresholds["surface_share"])
    distinct = keep & (z >= thresholds["min_z"])
    facts = {**facts, "dropped_by_z": int((keep & ~distinct).sum()), "kept": int(distinct.sum())}
    info = describe("specific", thresholds, [facts], tables)
    info["country"] = tables.neur.groups[row]
    return NeuronSet.from_flat(tables.neur.layout, ranked.found.flat[distinct], ranked.found.scores[distinct], info)


def one_pool(layout: NeuronLayout, module_names: Iterable[str] | None, shares: Sequence[float]) -> Pool:
    """The pool of specific sets."""
    modules = default_modules(layout) if module_names is None else check_module_names(module_names)
    return Pool("all", modules, shares, "share")


def select_random(
    layout: NeuronLayout, count: int, *, seed: int, module_names: Iterable[str] | None = None
) -> NeuronSet:
    """A random baseline: `count` neurons, uniform without replacement over one pool (CULNIG, section 7).

    Args:
        layout: the neurons there are, e.g. `table.layout`.
        count: how many, usually the size of the set to compare with.
        seed: of NumPy's PCG64; the same seed draws the same neurons.
        module_names: the pool; by default q, k, v and `mlp.gate_proj` (`mlp.up_proj` where the model has no
            gate).

    Raises:
        CulnigError: `count` is negative or above the pool's size; the seed is negative; a module was not
            scored.
    """
    modules = default_modules(layout) if module_names is None else check_module_names(module_names)
    ranges = module_ranges(layout, modules)
    size = ranking.pool_size(ranges)
    if not 0 <= operator.index(count) <= size:
        raise CulnigError(f"cannot draw {count} neurons from a pool of {size}; choose a count between 0 and {size}")
    if operator.index(seed) < 0:
        raise CulnigError(f"the seed is {seed}; choose one that is not negative")
    info = {
        "selection": "random",
        "seed": int(seed),
        "modules": list(modules),
        "pool": size,
        "neurons": int(count),
    }
    return NeuronSet.from_flat(layout, ranking.pool_flat(ranges, ranking.draw(size, count, seed)), None, info)
