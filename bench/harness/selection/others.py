"""The alternatives: NumPy, torch, a full stable sort, and dictionaries in Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from culnig_fast.neurons import ATTENTION_MODULES
from culnig_fast.scores import ScoreTable
from culnig_fast.tasks.countries import TARGET_COUNTRIES

Tables = tuple[ScoreTable, ScoreTable, ScoreTable]
MLP, ATTENTION, SURFACE, SPECIFIC, MIN_Z = 0.01, 0.002, 0.01, 0.003, 0.5
POOLS = ((("mlp.gate_proj",), MLP), (ATTENTION_MODULES, ATTENTION))


def pool_index(tables: Tables, modules: tuple[str, ...]) -> np.ndarray:
    """Flat indices of a pool, made before the clock starts."""
    layout = tables[0].layout
    spans = [layout.slice(site.module_name, site.layer_idx) for site in layout.sites if site.module_name in modules]
    return np.concatenate([np.arange(span.start, span.stop) for span in spans])


def numpy_top(values: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k largest, largest first, by argpartition."""
    best = np.argpartition(values, len(values) - k)[len(values) - k :]
    return best[np.argsort(-values[best], kind="stable")]


def sorted_top(values: np.ndarray, k: int) -> np.ndarray:
    """The same by a full stable sort."""
    return np.argsort(-values, kind="stable")[:k]


def torch_top(values: np.ndarray, k: int) -> np.ndarray:
    """The same by torch.topk."""
    return torch.topk(torch.from_numpy(values), k).indices.numpy()


def general(tables: Tables, pools: list[tuple[np.ndarray, float]], top: Any) -> np.ndarray:
    """The culture-general set, float64 differences of the whole tables first, as one writes it in NumPy."""
    neur, control, surface = tables
    difference = neur.totals.sum(0) / neur.n_samples - control.totals.sum(0) / control.n_samples
    read = surface.totals.sum(0)
    kept = []
    for index, share in pools:
        best = index[top(difference[index], int(len(index) * share))]
        superficial = index[top(read[index], int(len(index) * SURFACE))]
        kept.append(best[~np.isin(best, superficial)])
    chosen = np.concatenate(kept)
    return chosen[np.lexsort((chosen, -difference[chosen]))]


def specific(tables: Tables, index: np.ndarray, top: Any) -> dict[str, np.ndarray]:
    """The eight culture-specific sets with a z-score of every neuron, as one writes it in NumPy."""
    neur, control, surface = tables
    difference = neur.totals / neur.n_samples - control.totals / control.n_samples
    deviation = difference.std(0)
    z = np.divide(difference - difference.mean(0), deviation, out=np.zeros_like(difference), where=deviation != 0)
    chosen = {}
    for country in TARGET_COUNTRIES:
        row = neur.groups.index(country)
        best = index[top(difference[row, index], int(len(index) * SPECIFIC))]
        superficial = index[top(surface.row(country)[index], int(len(index) * SURFACE))]
        best = best[~np.isin(best, superficial)]
        chosen[country] = best[z[row, best] >= MIN_Z]
    return chosen


def as_dictionaries(table: ScoreTable) -> list[dict[tuple[str, int, int], float]]:
    """Each group's scores as the published program holds them: a dictionary by neuron."""
    names, layers, columns = table.layout.locate(np.arange(table.layout.size))
    keys = list(zip(names.tolist(), layers.tolist(), columns.tolist(), strict=True))
    return [dict(zip(keys, row, strict=True)) for row in table.totals.tolist()]


def general_of_dictionaries(tables: Tables, groups: list[list[dict[Any, float]]]) -> list[Any]:
    """The culture-general set by loops over dictionaries, sorted whole."""
    sums: list[dict[Any, float]] = []
    for dictionaries in groups:
        total: dict[Any, float] = {}
        for one in dictionaries:
            for neuron, score in one.items():
                total[neuron] = total.get(neuron, 0.0) + score
        sums.append(total)
    neur, control, read = sums
    difference = {n: s / tables[0].n_samples - control[n] / tables[1].n_samples for n, s in neur.items()}
    kept: list[Any] = []
    for modules, share in POOLS:
        pool = {n: s for n, s in difference.items() if n[0] in modules}
        best = sorted(pool, key=lambda n: -pool[n])[: int(len(pool) * share)]
        crc = {n: s for n, s in read.items() if n[0] in modules}
        superficial = set(sorted(crc, key=lambda n: -crc[n])[: int(len(crc) * SURFACE)])
        kept += [n for n in best if n not in superficial]
    return sorted(kept, key=lambda n: -difference[n])
