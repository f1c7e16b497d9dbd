"""Pools of neurons ranked by score tables, from which the choices of `selection` and `sweep` are read off."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.neurons import ATTENTION_MODULES, MLP_MODULES, NeuronLayout, check_module_names
from culnig_fast.selection import ranking
from culnig_fast.selection.core import implementation
from culnig_fast.selection.inputs import country_row
from culnig_fast.selection.ranking import Candidates, Job, NotANumberError, Source


class Tables(NamedTuple):
    """The three tables of a selection."""

    neur: Any
    control: Any | None
    surface: Any | None

    def sources(self) -> tuple[Source, Source | None, Source | None]:
        """As they are ranked; surface by its bare sums."""
        neur = Source("neur", self.neur.totals, self.neur.n_samples)
        control = None if self.control is None else Source("control", self.control.totals, self.control.n_samples)
        return neur, control, None if self.surface is None else Source("surface", self.surface.totals, 1)


class Pool(NamedTuple):
    """Modules ranked together, and the most that any choice takes of them."""

    name: str
    modules: tuple[str, ...]
    shares: Sequence[float]
    share_name: str


class RankedPool(NamedTuple):
    """A pool's candidates at the largest share, best first, from which every smaller choice is read off."""

    pool: Pool
    size: int
    found: Candidates
    surface_counts: np.ndarray

    def choose(self, share: float, surface_share: float) -> tuple[np.ndarray, dict[str, Any]]:
        """Which of `found` are chosen, bool [n], and the facts that `info` records."""
        count = ranking.top_count(self.size, share, self.pool.share_name)
        among = np.arange(len(self.found.flat)) < count
        keep, surface_top = among, 0
        if len(self.surface_counts):
            surface_top = ranking.top_count(self.size, surface_share, "surface_share")
            too_small = int(np.searchsorted(self.surface_counts, surface_top))
            keep = among & (self.found.surface_class > too_small)
        facts = {
            "pool": self.pool.name,
            "modules": list(self.pool.modules),
            "neurons": self.size,
            "candidates": count,
            "surface_top": surface_top,
            "dropped_by_surface": count - int(keep.sum()),
            "kept": int(keep.sum()),
        }
        return keep, facts


def general_pools(
    layout: NeuronLayout,
    mlp_modules: Iterable[str] | None,
    attention_modules: Iterable[str],
    mlp_shares: Sequence[float],
    attention_shares: Sequence[float],
) -> list[Pool]:
    """The pools that were not left out; CulnigError when none is, or a module is in both."""
    mlp = mlp_modules_of(layout) if mlp_modules is None else _choice(mlp_modules)
    attention = _choice(attention_modules)
    for name in mlp:
        if name in attention:
            raise CulnigError(f"{name} is in the MLP pool and in the attention pool; name it in one of them")
    pools = [
        Pool("mlp", mlp, mlp_shares, "mlp_share"),
        Pool("attention", attention, attention_shares, "attention_share"),
    ]
    if not mlp and not attention:
        raise CulnigError("both pools were left out; name MLP or attention modules to select from")
    return [pool for pool in pools if pool.modules]


def rank_general(tables: Tables, pools: Sequence[Pool], surface_shares: Sequence[float]) -> list[RankedPool]:
    """Every pool by all groups together, in one sweep."""
    rows = [np.arange(0 if table is None else len(table.groups)) for table in tables]
    return _rank(tables, [(pool, (rows[0], rows[1], rows[2])) for pool in pools], surface_shares)


def rank_countries(
    tables: Tables, pool: Pool, countries: Sequence[str], surface_shares: Sequence[float]
) -> list[tuple[int, RankedPool]]:
    """The pool by each country's own rows, in one sweep; with each the country's row of neur."""
    wanted = []
    for country in countries:
        row = country_row("neur", tables.neur, country)
        group = tables.neur.groups[row]
        control = [] if tables.control is None else [tables.control.groups.index(group)]
        surface = [] if tables.surface is None else [country_row("surface", tables.surface, country)]
        rows = tuple(np.array(r, dtype=np.int64) for r in ([row], control, surface))
        wanted.append((row, (pool, (rows[0], rows[1], rows[2]))))
    ranked = _rank(tables, [one for _, one in wanted], surface_shares)
    return [(row, one) for (row, _), one in zip(wanted, ranked, strict=True)]


def candidate_z(tables: Tables, ranked: Sequence[tuple[int, RankedPool]]) -> list[np.ndarray]:
    """z of each country's candidates, float64 [n]; NaN for those that every choice drops by surface."""
    neur, control, _ = tables.sources()
    pairing = [] if tables.control is None else [tables.control.groups.index(name) for name in tables.neur.groups]
    needed = [~((one.found.surface_class == 0) & (len(one.surface_counts) > 0)) for _, one in ranked]
    flat = [one.found.flat[need] for (_, one), need in zip(ranked, needed, strict=True)]
    rows = [np.full(len(f), row, dtype=np.int64) for (row, _), f in zip(ranked, flat, strict=True)]
    with named_errors(tables.neur.layout):
        none = [np.zeros(0, dtype=np.int64)]
        z = ranking.group_z(neur, control, pairing, np.concatenate(none + flat), np.concatenate(none + rows))
    result, end = [], 0
    for need, f in zip(needed, flat, strict=True):
        own = np.full(len(need), np.nan)
        own[need] = z[end : end + len(f)]
        result.append(own)
        end += len(f)
    return result


def _rank(
    tables: Tables, wanted: Sequence[tuple[Pool, tuple[np.ndarray, np.ndarray, np.ndarray]]], surface: Sequence[float]
) -> list[RankedPool]:
    layout = tables.neur.layout
    jobs, sizes = [], []
    for pool, rows in wanted:
        ranges = module_ranges(layout, pool.modules)
        size = ranking.pool_size(ranges)
        count = max(ranking.top_count(size, share, pool.share_name) for share in pool.shares)
        counts = sorted({ranking.top_count(size, share, "surface_share") for share in surface})
        if tables.surface is None:
            counts = []
        jobs.append(Job(ranges, *rows, count, np.array(counts, dtype=np.int64)))
        sizes.append(size)
    with named_errors(layout):
        found = ranking.candidates(*tables.sources(), jobs)
    return [
        RankedPool(pool, size, one, job.surface_counts)
        for (pool, _), size, one, job in zip(wanted, sizes, found, jobs, strict=True)
    ]


@contextmanager
def named_errors(layout: NeuronLayout) -> Iterator[None]:
    """Turn NotANumberError into a CulnigError that names the neuron."""
    try:
        yield
    except NotANumberError as error:
        names, layers, columns = layout.locate([error.flat])
        raise CulnigError(
            f"the {error.source} score of neuron {columns[0]} of {names[0]} in layer {layers[0]} is NaN or "
            "infinite; score again in a wider dtype, float32 or bfloat16"
        ) from None


def mlp_modules_of(layout: NeuronLayout) -> tuple[str, ...]:
    """The MLP modules that are selected from by default; CulnigError where none was scored.

    The gates of dense layers, shared and routed experts together; where no gate was scored, what goes up.
    """
    for part in ("gate_proj", "up_proj"):
        names = tuple(name for name in MLP_MODULES if name.endswith(part) and name in layout.module_names)
        if names:
            return names
    raise CulnigError(
        f"neither mlp.gate_proj nor mlp.up_proj was scored (only {', '.join(layout.module_names)}); "
        "score one of them, or name the modules to select from"
    )


def default_modules(layout: NeuronLayout) -> tuple[str, ...]:
    """The one pool of specific and random sets."""
    return (*ATTENTION_MODULES, *mlp_modules_of(layout))


def _choice(modules: Iterable[str]) -> tuple[str, ...]:
    """Module names of a pool that may be left out."""
    modules = (modules,) if isinstance(modules, str) else tuple(modules)
    return check_module_names(modules) if modules else ()


def module_ranges(layout: NeuronLayout, modules: tuple[str, ...]) -> np.ndarray:
    """Flat ranges of the modules' sites, int64 [sites, 2], ascending."""
    for name in modules:
        if name not in layout.module_names:
            raise CulnigError(
                f"no neurons of {name} were scored (only {', '.join(layout.module_names)}); "
                "score them too, or leave them out of the selection"
            )
    sites = [layout.slice(s.module_name, s.layer_idx) for s in layout.sites if s.module_name in modules]
    return np.array([[site.start, site.stop] for site in sites], dtype=np.int64)


def describe(
    kind: str,
    thresholds: dict[str, float],
    pools: list[dict[str, Any]],
    sources: Tables,
) -> dict[str, Any]:
    """JSON-ready provenance of a set."""
    tables = sources._asdict()
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
