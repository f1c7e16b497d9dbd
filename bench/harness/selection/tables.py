"""Random score tables as wide as a model asks for."""

from __future__ import annotations

import numpy as np

from culnig_fast.neurons import NeuronLayout, NeuronSite
from culnig_fast.scores import ScoreTable
from culnig_fast.tasks.countries import COUNTRIES, TARGET_COUNTRIES

LAYER = {
    "self_attn.q_proj": 4096,
    "self_attn.k_proj": 2048,
    "self_attn.v_proj": 2048,
    "mlp.gate_proj": 21504,
    "mlp.up_proj": 21504,
}
"""Columns of a layer of gemma-3-27b, of which 62 make 3.17 million neurons."""


def make_tables(neurons: int) -> tuple[ScoreTable, ScoreTable, ScoreTable]:
    """Cultural and control scores of 16 countries and CountryRC scores of 8, float64, about `neurons` wide."""
    layers = max(1, round(neurons / sum(LAYER.values())))
    layout = NeuronLayout(NeuronSite(name, layer, width) for layer in range(layers) for name, width in LAYER.items())
    every = tuple(COUNTRIES)
    return _table(0, every, layout), _table(1, every, layout), _table(2, TARGET_COUNTRIES, layout)


def _table(seed: int, groups: tuple[str, ...], layout: NeuronLayout) -> ScoreTable:
    generator = np.random.default_rng(seed)
    totals = np.empty((len(groups), layout.size))
    for row in totals:
        generator.standard_normal(out=row, dtype=np.float64)
        np.power(row, 3, out=row)  # few neurons stand out, as in real tables
    counts = np.full(len(groups), 900)
    return ScoreTable(totals, groups, counts, counts * 0.6, (), layout)
