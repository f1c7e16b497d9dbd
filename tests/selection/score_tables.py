"""Small score tables that the tests of selection are worked out on."""

from __future__ import annotations

from typing import Any

import numpy as np

from culnig_fast.neurons import NeuronLayout, NeuronSite
from culnig_fast.scores import ScoreTable

Q, K, V, GATE, UP = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"
LAYOUT = NeuronLayout(
    NeuronSite(name, layer, width) for layer in (0, 1) for name, width in ((Q, 5), (K, 3), (V, 3), (GATE, 7), (UP, 7))
)


def table(totals: Any, groups: str = "abc", counts: Any = None, layout: NeuronLayout = LAYOUT) -> ScoreTable:
    totals = np.array(totals, dtype=np.float64)
    counts = [2] * len(groups) if counts is None else counts
    return ScoreTable(totals, tuple(groups), counts, np.ones(len(groups)), ("id",), layout, {"model": "toy"})


def random_tables(seed: int) -> tuple[ScoreTable, ScoreTable, ScoreTable]:
    """Few distinct values, so that ties and coincidences abound; the control groups in another order."""
    rng = np.random.default_rng(seed)
    neur, control, surface = (rng.integers(-4, 9, (3, LAYOUT.size)) / 4 for _ in range(3))
    return (
        table(neur, "abc", [3, 5, 2]),
        table(control, "cab", [2, 3, 4]),
        table(surface, "bca", [1, 4, 4]),
    )
