"""Small tables, sets and results that the tests of analyses are worked out on, and frames of every size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from culnig_fast.analysis import instances, kin, kinship, layers, overlap, parts, scores, stability
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.neurons import NeuronLayout, NeuronSite
from culnig_fast.scores import ScoreTable
from culnig_fast.selection.rules import select_general, select_random
from culnig_fast.tables.figures import Drawing, TaskPoints
from culnig_fast.tasks.countries import COUNTRIES

MODULES = {"self_attn.q_proj": 40, "self_attn.k_proj": 20, "self_attn.v_proj": 20, "mlp.gate_proj": 90}


def layout(n_layers: int = 3, times: int = 1) -> NeuronLayout:
    return NeuronLayout(
        NeuronSite(name, layer, times * width) for layer in range(n_layers) for name, width in MODULES.items()
    )


def table(seed: int, where: NeuronLayout, groups: tuple[str, ...] = ("Spain", "Iran")) -> ScoreTable:
    rng = np.random.default_rng(seed)
    totals = rng.standard_t(2, size=(len(groups), where.size)) * 1e-3
    counts = np.arange(3, 3 + len(groups))
    return ScoreTable(totals, groups, counts, counts / 2, (), where)


def draw_set(seed: int, where: NeuronLayout, count: int) -> NeuronSet:
    """More of the shallow layers."""
    rng = np.random.default_rng(seed)
    weight = np.exp(-np.arange(where.size) / where.size * 4)
    return NeuronSet.from_flat(where, rng.choice(where.size, count, replace=False, p=weight / weight.sum()))


@dataclass(frozen=True, eq=False)
class Recorded:
    """What an instance table holds."""

    neurons: NeuronSet
    scores: np.ndarray
    probability: np.ndarray
    ids: tuple[str, ...]
    groups: tuple[str, ...]


def recorded(neurons: NeuronSet, samples: int = 30, seed: int = 0) -> Recorded:
    """Scores in few steps, so that there are ties and zeros."""
    rng = np.random.default_rng(seed)
    values = np.round(rng.normal(size=(samples, len(neurons))) * 2) / 8
    ids = tuple(f"question {i}" for i in range(samples))
    return Recorded(neurons, values, rng.random(samples), ids, tuple(COUNTRIES[i % 3] for i in range(samples)))


def culture(countries: tuple[str, ...], each: int = 12, seed: int = 0) -> TaskPoints:
    """Points of the original and of every country's suppression; the next country in the list loses half as much."""
    rng = np.random.default_rng(seed)
    groups = tuple(countries[i % len(countries)] for i in range(each * len(countries)))
    original = 100.0 * (rng.random(len(groups)) < 0.8)
    points = {"original": original}
    for i, name in enumerate(countries):
        lost = [0.6 if j == i else 0.4 if abs(i - j) == 1 else 0.1 for j in range(len(countries))]
        chance = np.array([lost[countries.index(group)] for group in groups])
        points[f"specific-{name}"] = original * (rng.random(len(groups)) > chance)
    return TaskPoints(groups, points)


def tasks(names: tuple[str, ...], n: int = 40) -> dict[str, TaskPoints]:
    result = {}
    for i, name in enumerate(names):
        rng = np.random.default_rng(i)
        original = 100.0 * (rng.random(n) < 0.8)
        shares = {"original": 0.0, "mlp": 0.3, "attention": 0.1, "suppressed": 0.4, "random-0": 0.02, "random-1": 0.05}
        result[name] = TaskPoints(("x",) * n, {c: original * (rng.random(n) >= share) for c, share in shares.items()})
    return result


SIZES = {"mlp": 12, "attention": 2, "suppressed": 14, "random-0": 14, "random-1": 14}


def frames(n_layers: int, countries: tuple[str, ...], task_names: tuple[str, ...], times: int = 1) -> dict[str, Any]:
    """A frame for every figure of the catalogue."""
    where = layout(n_layers, times)
    tables = [table(seed, where) for seed in range(3)]
    general = select_general(*tables, mlp_share=0.1, attention_share=0.05)
    count = max(3, where.size // 30)
    own = {name: draw_set(i, where, count + i) for i, name in enumerate(countries)}
    drops = kinship.drops(culture(countries), {name: f"specific-{name}" for name in countries})
    resamples = {str(i): draw_set(i % 3, where, len(general)) for i in range(12)}
    shares = {"mlp_share": (0.05, 0.1, 0.2), "attention_share": (0.02, 0.05, 0.1), "surface_share": (0.005, 0.01, 0.02)}
    result: dict[str, pd.DataFrame] = {
        "parts": parts.parts_lost(tasks(task_names), SIZES, ["random-0", "random-1"], Drawing(resamples=200)),
        "layers": layers.neurons_by_layer(
            {"general": general}, where, [select_random(where, len(general), seed=i) for i in range(3)]
        ),
        "layers-countries": layers.neurons_by_layer({"general": general, **own}, where),
        "scores": scores.score_histogram(*tables[:2], general, mlp_share=0.1, attention_share=0.05),
        "overlap": overlap.overlaps(own, where),
        "kinship": drops,
        "kinship-ranks": kinship.average_ranks(drops),
        "kin": kin.kin_ranks(drops, [countries[i : i + 2] for i in range(len(countries) - 1)]),
        "instances": instances.positive_shares(recorded(general), {"general": general, **own}),
        "instances-sum": instances.positive_shares(recorded(general, seed=5), {"general": general, **own}),
        "stability-resamples": stability.resample_overlaps(general, resamples, where),
        "stability-neurons": stability.selection_frequency(general, resamples, where),
        "stability-thresholds": stability.threshold_overlaps(*tables, **shares),
    }
    return result
