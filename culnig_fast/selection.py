"""Culture-general, culture-specific and random neuron sets from score tables (CULNIG, sections 5 to 7).

A neuron's score is d = s(neur) / N_neur − s(control) / N_control, with N the samples of the whole table.
Equal scores keep flat order: layer, then q, k, v, gate, up, act within the layer, then column.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from culnig_fast import ranking
from culnig_fast.errors import CulnigError
from culnig_fast.neurons import ATTENTION_MODULES, NeuronLayout, NeuronSet, check_module_names
from culnig_fast.ranking import NotANumberError, Source, implementation
from culnig_fast.scores import ScoreTable
from culnig_fast.selection_input import check_every_group, check_tables, country_row

__all__ = ["implementation", "select_general", "select_random", "select_specific"]


def select_general(
    neur: ScoreTable,
    control: ScoreTable | None,
    surface: ScoreTable | None,
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
        neur: scores on cultural questions.
        control: scores on the same prompts without the question, or None to subtract nothing.
        surface: scores on CountryRC, or None to drop nothing.
        mlp_share, attention_share, surface_share: parts of a pool, 0 to 1.
        mlp_modules: the MLP pool; by default `mlp.gate_proj`, or `mlp.up_proj` where the model has no gate.
        attention_modules: the attention pool. An empty choice leaves a pool out.

    Raises:
        CulnigError: tables of different neurons or groups, without samples or with NaN totals; a share
            outside 0…1; a module that was not scored.
    """
    check_tables(neur, control, surface)
    layout = neur.layout
    mlp = (_mlp_module(layout),) if mlp_modules is None else _choice(mlp_modules)
    attention = _choice(attention_modules)
    for name in mlp:
        if name in attention:
            raise CulnigError(f"{name} is in the MLP pool and in the attention pool; name it in one of them")
    sources = _Sources(
        _source("neur", neur),
        None if control is None else _source("control", control),
        None if surface is None else _source("surface", surface),
    )
    shares = {"mlp": mlp_share, "attention": attention_share}
    pools = [
        _select_in_pool(layout, name, modules, sources, (shares[name], f"{name}_share"), surface_share)
        for name, modules in (("mlp", mlp), ("attention", attention))
        if modules
    ]
    if not pools:
        raise CulnigError("both pools were left out; name MLP or attention modules to select from")
    flat = np.concatenate([pool.flat for pool in pools])
    scores = np.concatenate([pool.scores for pool in pools])
    order = np.lexsort((flat, -scores))
    thresholds = {"mlp_share": mlp_share, "attention_share": attention_share, "surface_share": surface_share}
    info = _info("general", thresholds, [pool.facts for pool in pools], neur, control, surface)
    return NeuronSet.from_flat(layout, flat[order], scores[order], info)


def select_specific(
    neur: ScoreTable,
    control: ScoreTable | None,
    surface: ScoreTable | None,
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
    check_tables(neur, control, surface)
    check_every_group(neur, control)
    if isinstance(min_z, bool) or not isinstance(min_z, int | float | np.number) or math.isnan(min_z):
        raise CulnigError(f"min_z must be a number of standard deviations, not {min_z!r}")
    layout = neur.layout
    row = country_row("neur", neur, country)
    # Row of each of neur's groups in the control table, which may list the same groups in another order.
    control_rows = [] if control is None else [control.group_index(name) for name in neur.groups]
    own = _Sources(
        _source("neur", neur, row),
        None if control is None else _source("control", control, control_rows[row]),
        None if surface is None else _source("surface", surface, country_row("surface", surface, country)),
    )
    modules = _default_modules(layout) if module_names is None else check_module_names(module_names)
    pool = _select_in_pool(layout, "all", modules, own, (share, "share"), surface_share)
    every = None if control is None else _source("control", control)
    try:
        z = ranking.group_z(_source("neur", neur), every, control_rows, pool.flat, row)
    except NotANumberError as error:
        raise _explain(error, layout) from None
    keep = z >= min_z
    facts = {**pool.facts, "dropped_by_z": int((~keep).sum()), "kept": int(keep.sum())}
    thresholds = {"share": share, "surface_share": surface_share, "min_z": min_z}
    info = _info("specific", thresholds, [facts], neur, control, surface)
    info["country"] = neur.groups[row]
    return NeuronSet.from_flat(layout, pool.flat[keep], pool.scores[keep], info)


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
    modules = _default_modules(layout) if module_names is None else check_module_names(module_names)
    ranges = _ranges(layout, modules)
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


class _Sources(NamedTuple):
    neur: Source
    control: Source | None
    surface: Source | None


class _Pool(NamedTuple):
    """What is left of one pool, best first, and the facts that `info` records."""

    flat: np.ndarray
    scores: np.ndarray
    facts: dict[str, Any]


def _select_in_pool(
    layout: NeuronLayout,
    name: str,
    modules: tuple[str, ...],
    sources: _Sources,
    share: tuple[float, str],
    surface_share: float,
) -> _Pool:
    """The top share of neur − control in a pool, less the top share of surface there."""
    ranges = _ranges(layout, modules)
    size = ranking.pool_size(ranges)
    surface_top = ranking.top_count(size, surface_share, "surface_share")
    try:
        flat, scores = ranking.rank(sources.neur, sources.control, ranges, ranking.top_count(size, *share))
        keep = np.ones(len(flat), dtype=bool)
        if sources.surface is not None:
            superficial, _ = ranking.rank(sources.surface, None, ranges, surface_top)
            keep = ~np.isin(flat, superficial, assume_unique=True)
    except NotANumberError as error:
        raise _explain(error, layout) from None
    facts = {
        "pool": name,
        "modules": list(modules),
        "neurons": size,
        "candidates": len(flat),
        "surface_top": 0 if sources.surface is None else surface_top,
        "dropped_by_surface": int((~keep).sum()),
        "kept": int(keep.sum()),
    }
    return _Pool(flat[keep], scores[keep], facts)


def _source(name: str, table: ScoreTable, row: int | None = None) -> Source:
    """A whole table, or one row of it with the whole table's N; surface is ranked by its bare sums."""
    totals = table.totals if row is None else table.totals[row : row + 1]
    return Source(name, totals, 1 if name == "surface" else table.n_samples)


def _mlp_module(layout: NeuronLayout) -> str:
    for name in ("mlp.gate_proj", "mlp.up_proj"):
        if name in layout.module_names:
            return name
    raise CulnigError(
        f"neither mlp.gate_proj nor mlp.up_proj was scored (only {', '.join(layout.module_names)}); "
        "score one of them, or name the modules to select from"
    )


def _default_modules(layout: NeuronLayout) -> tuple[str, ...]:
    return (*ATTENTION_MODULES, _mlp_module(layout))


def _choice(modules: Iterable[str]) -> tuple[str, ...]:
    """Module names of a pool that may be left out."""
    modules = (modules,) if isinstance(modules, str) else tuple(modules)
    return check_module_names(modules) if modules else ()


def _ranges(layout: NeuronLayout, modules: tuple[str, ...]) -> np.ndarray:
    """Flat ranges of the modules' sites, int64 [sites, 2], ascending."""
    for name in modules:
        if name not in layout.module_names:
            raise CulnigError(
                f"no neurons of {name} were scored (only {', '.join(layout.module_names)}); "
                "score them too, or leave them out of the selection"
            )
    sites = [layout.slice(s.module_name, s.layer_idx) for s in layout.sites if s.module_name in modules]
    return np.array([[site.start, site.stop] for site in sites], dtype=np.int64)


def _explain(error: NotANumberError, layout: NeuronLayout) -> CulnigError:
    names, layers, columns = layout.locate(error.flat)
    return CulnigError(
        f"the {error.source} score of neuron {columns[0]} of {names[0]} in layer {layers[0]} is NaN or "
        "infinite; score again in a wider dtype, float32 or bfloat16"
    )


def _info(
    kind: str,
    thresholds: dict[str, float],
    pools: list[dict[str, Any]],
    neur: ScoreTable,
    control: ScoreTable | None,
    surface: ScoreTable | None,
) -> dict[str, Any]:
    """JSON-ready provenance of a set."""
    tables = {"neur": neur, "control": control, "surface": surface}
    kept = sum(pool["kept"] for pool in pools)
    candidates = sum(pool["candidates"] for pool in pools)
    statement = f"{kept} of {candidates} candidates kept"
    if kept == 0:
        statement = "empty: " + (statement if candidates else "the shares are too small for one candidate")
    return {
        "selection": kind,
        "neurons": kept,
        "statement": statement,
        # JSON knows no infinities.
        "thresholds": {k: float(v) if math.isfinite(v) else str(v) for k, v in thresholds.items()},
        "pools": pools,
        "sources": {
            name: None
            if table is None
            else {"samples": table.n_samples, "groups": list(table.groups), "metadata": table.metadata}
            for name, table in tables.items()
        },
        "implementation": implementation(),
    }
