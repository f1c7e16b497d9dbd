"""How sensitive a selection is to its thresholds: many settings read off one ranking of the tables."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.neurons import ATTENTION_MODULES
from culnig_fast.scores import ScoreTable
from culnig_fast.selection.inputs import check_countries, check_every_group, check_min_z, check_tables
from culnig_fast.selection.pools import Tables, candidate_z, general_pools, rank_countries, rank_general
from culnig_fast.selection.rules import general_set, one_pool, specific_set
from culnig_fast.tasks.countries import TARGET_COUNTRIES

if TYPE_CHECKING:
    from culnig_fast.selection.device import DeviceTable


@dataclass(frozen=True)
class Sweep:
    """The sets of several settings.

    Attributes:
        settings: the thresholds of each, by name.
        sets: the set of each, the same that `select_general` or `select_specific` chooses with them.
        jaccard: float64 [settings, settings], |both| / |either|; 1 for two empty sets.
    """

    settings: tuple[dict[str, float], ...]
    sets: tuple[NeuronSet, ...]
    jaccard: np.ndarray

    def rows(self) -> list[dict[str, Any]]:
        """JSON-ready: a setting's thresholds, its size by module, and its overlap with every setting."""
        result = []
        for setting, chosen, overlaps in zip(self.settings, self.sets, self.jaccard.tolist(), strict=True):
            modules = {name: chosen.module_names.count(name) for name in sorted(set(chosen.module_names))}
            # JSON knows no infinities.
            thresholds = {name: v if math.isfinite(v) else str(v) for name, v in setting.items()}
            result.append({**thresholds, "neurons": len(chosen), "modules": modules, "jaccard": overlaps})
        return result


def sweep_general(
    neur: ScoreTable | DeviceTable,
    control: ScoreTable | DeviceTable | None,
    surface: ScoreTable | DeviceTable | None,
    *,
    mlp_share: Sequence[float] = (0.01,),
    attention_share: Sequence[float] = (0.002,),
    surface_share: Sequence[float] = (0.01,),
    mlp_modules: Iterable[str] | None = None,
    attention_modules: Iterable[str] = ATTENTION_MODULES,
) -> Sweep:
    """Culture-general neurons at every combination of the thresholds, in one pass over the tables.

    Args:
        mlp_share, attention_share, surface_share: values to try, at least one each.
        neur, control, surface, mlp_modules, attention_modules: as for `select_general`.

    Raises:
        CulnigError: as for `select_general`; a threshold has no value.
    """
    check_tables(neur, control, surface)
    settings = grid(mlp_share=mlp_share, attention_share=attention_share, surface_share=surface_share)
    tables = Tables(neur, control, surface)
    pools = general_pools(neur.layout, mlp_modules, attention_modules, mlp_share, attention_share)
    ranked = rank_general(tables, pools, surface_share)
    return _sweep(settings, [general_set(tables, ranked, setting) for setting in settings], neur.layout)


def sweep_specific(
    neur: ScoreTable | DeviceTable,
    control: ScoreTable | DeviceTable | None,
    surface: ScoreTable | DeviceTable | None,
    countries: Iterable[str] = TARGET_COUNTRIES,
    *,
    share: Sequence[float] = (0.003,),
    surface_share: Sequence[float] = (0.01,),
    min_z: Sequence[float] = (0.5,),
    module_names: Iterable[str] | None = None,
) -> dict[str, Sweep]:
    """Culture-specific neurons of each country at every combination of the thresholds, in one pass.

    Args:
        share, surface_share, min_z: values to try, at least one each.
        neur, control, surface, countries, module_names: as for `select_specific_all`.

    Raises:
        CulnigError: as for `select_specific_all`; a threshold has no value.
    """
    countries = check_countries(countries)
    check_tables(neur, control, surface)
    check_every_group(neur, control)
    settings = grid(share=share, surface_share=surface_share, min_z=min_z)
    for value in min_z:
        check_min_z(value)
    tables = Tables(neur, control, surface)
    ranked = rank_countries(tables, one_pool(neur.layout, module_names, share), countries, surface_share)
    result = {}
    for (row, one), z in zip(ranked, candidate_z(tables, ranked), strict=True):
        if neur.groups[row] in result:
            raise CulnigError(f"country {neur.groups[row]} is named twice; name each once")
        sets = [specific_set(tables, row, one, z, setting) for setting in settings]
        result[neur.groups[row]] = _sweep(settings, sets, neur.layout)
    return result


def grid(**values: Sequence[float]) -> list[dict[str, float]]:
    """Every combination, the last name varying fastest; CulnigError for a name without values."""
    for name, options in values.items():
        if not len(options):
            raise CulnigError(f"{name} has no value to try; give at least one")
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def jaccard(sets: Sequence[np.ndarray]) -> np.ndarray:
    """Overlap |both| / |either| of sets of flat indices, float64 [n, n]; 1 for two empty sets."""
    union = np.unique(np.concatenate([np.zeros(0, np.int64), *sets]))
    sizes = np.array([len(one) for one in sets])
    both = np.zeros((len(sets), len(sets)))
    # In pieces, so that a hundred large sets take little memory.
    for start in range(0, len(union), 65536):
        piece = union[start : start + 65536]
        member = np.stack([np.isin(piece, one) for one in sets]).astype(np.float32)
        both += member @ member.T  # counts below 2**24 are exact
    either = sizes[:, None] + sizes[None, :] - both
    jaccard: np.ndarray = np.divide(both, either, out=np.ones_like(both), where=either > 0)
    return jaccard


def as_csv(sweeps: dict[str, Sweep]) -> str:
    """A line a setting; `jaccard_1` … are its overlaps with the settings of the same name, in their order."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    first = next(iter(sweeps.values()))
    overlaps = [f"jaccard_{i + 1}" for i in range(len(first.settings))]
    writer.writerow(["selection", "setting", *first.settings[0], "neurons", *overlaps])
    for name, sweep in sweeps.items():
        for i, (setting, chosen) in enumerate(zip(sweep.settings, sweep.sets, strict=True)):
            writer.writerow([name, i + 1, *setting.values(), len(chosen), *sweep.jaccard[i].tolist()])
    return text.getvalue()


def _sweep(settings: Sequence[dict[str, float]], sets: Sequence[NeuronSet], layout: Any) -> Sweep:
    return Sweep(tuple(settings), tuple(sets), jaccard([one.flat(layout) for one in sets]))
