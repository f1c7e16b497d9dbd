"""Would other questions, or other thresholds, have chosen the same neurons?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from culnig_fast.analysis.overlap import expected_jaccard, shared_distribution
from culnig_fast.errors import CulnigError
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.neurons import ATTENTION_MODULES, NeuronLayout
from culnig_fast.scores import ScoreTable
from culnig_fast.selection.pools import default_modules
from culnig_fast.selection.rules import select_general
from culnig_fast.selection.sweep import jaccard, sweep_general

if TYPE_CHECKING:
    import pandas as pd

Select = Callable[[ScoreTable, ScoreTable | None, ScoreTable | None], NeuronSet]
"""neur, control, surface → the set chosen of them."""

MLP_SHARES = (0.005, 0.01, 0.02)
ATTENTION_SHARES = (0.001, 0.002, 0.004)
SURFACE_SHARES = (0.005, 0.01, 0.02)
"""Half, once and twice the method's thresholds."""


def select_resamples(
    neur: ScoreTable,
    control: ScoreTable | None,
    surface: ScoreTable | None,
    select: Select = select_general,
) -> dict[str, NeuronSet]:
    """The set chosen of each resample of the questions.

    Args:
        neur, control, surface: tables whose groups are resamples, of the same names; None as for `select_general`.
        select: chooses a set of tables of one group each.

    Raises:
        CulnigError: a table lacks a resample of neur, or what `select` refuses.
    """

    def one(table: ScoreTable | None, name: str) -> ScoreTable | None:
        if table is None:
            return None
        row = table.group_index(name)
        here = slice(row, row + 1)
        return ScoreTable(
            table.totals[here], (name,), table.counts[here], table.probability[here], (), table.layout, table.metadata
        )

    chosen = {}
    for name in neur.groups:
        own = one(neur, name)
        assert own is not None
        chosen[name] = select(own, one(control, name), one(surface, name))
    return chosen


def resample_overlaps(full: NeuronSet, resampled: Mapping[str, NeuronSet], layout: NeuronLayout) -> pd.DataFrame:
    """How much the set of each resample shares with the set of all questions, and with the other resamples'.

    Returns:
        One row a resample: `resample`, `neurons`, `neurons_full`, `both`, `jaccard` (with the full set),
        `jaccard_others` (mean with the other resamples; NaN for a single one), `expected` (mean Jaccard of sets drawn
        at random that keep how many MLP and attention neurons each has).

    Raises:
        CulnigError: no resample.
    """
    import pandas as pd

    _some(resampled)
    flat = [one.flat(layout) for one in resampled.values()]
    whole = full.flat(layout)
    between = jaccard([*flat, whole])
    rows = []
    for i, (name, one) in enumerate(resampled.items()):
        others = np.delete(between[i, :-1], i)
        rows.append(
            {
                "resample": name,
                "neurons": len(one),
                "neurons_full": len(full),
                "both": len(np.intersect1d(flat[i], whole, assume_unique=True)),
                "jaccard": float(between[i, -1]),
                "jaccard_others": float(others.mean()) if len(others) else float("nan"),
                "expected": _by_chance(one, full, layout),
            }
        )
    return pd.DataFrame(rows)


def selection_frequency(full: NeuronSet, resampled: Mapping[str, NeuronSet], layout: NeuronLayout) -> pd.DataFrame:
    """How often each neuron is chosen, the most often chosen first.

    Returns:
        One row a neuron that the full set or a resample holds: `module_name`, `layer_idx`, `neuron_idx`, `in_full`,
        `times`, `frequency` (of the resamples, 0…1), `resamples`.

    Raises:
        CulnigError: no resample.
    """
    import pandas as pd

    _some(resampled)
    whole = full.flat(layout)
    flat, times = np.unique(
        np.concatenate([whole, *(one.flat(layout) for one in resampled.values())]), return_counts=True
    )
    in_full = np.isin(flat, whole)
    times = times - in_full
    names, layers, columns = layout.locate(flat)
    frame = pd.DataFrame(
        {
            "module_name": names,
            "layer_idx": layers,
            "neuron_idx": columns,
            "in_full": in_full,
            "times": times,
            "frequency": times / len(resampled),
            "resamples": len(resampled),
        }
    )
    return frame.sort_values("times", ascending=False, kind="stable", ignore_index=True)


def threshold_overlaps(
    neur: ScoreTable,
    control: ScoreTable | None,
    surface: ScoreTable | None,
    *,
    mlp_share: Sequence[float] = MLP_SHARES,
    attention_share: Sequence[float] = ATTENTION_SHARES,
    surface_share: Sequence[float] = SURFACE_SHARES,
) -> pd.DataFrame:
    """Jaccard of the culture-general sets of every two combinations of thresholds.

    Returns:
        One row an ordered pair of settings a, b: `a`, `b` (their numbers from 1), the thresholds `mlp_share_a` …
        `surface_share_b`, `neurons_a`, `neurons_b`, `jaccard`.

    Raises:
        CulnigError: as for `sweep_general`.
    """
    import pandas as pd

    swept = sweep_general(
        neur, control, surface, mlp_share=mlp_share, attention_share=attention_share, surface_share=surface_share
    )
    rows: list[dict[str, Any]] = []
    for a, b in itertools.product(range(len(swept.sets)), repeat=2):
        row: dict[str, Any] = {"a": a + 1, "b": b + 1}
        for side, place in (("a", a), ("b", b)):
            row |= {f"{name}_{side}": value for name, value in swept.settings[place].items()}
            row[f"neurons_{side}"] = len(swept.sets[place])
        rows.append({**row, "jaccard": float(swept.jaccard[a, b])})
    return pd.DataFrame(rows)


def _by_chance(a: NeuronSet, b: NeuronSet, layout: NeuronLayout) -> float:
    """Mean Jaccard of random sets of the same numbers of MLP and attention neurons."""
    used = {*default_modules(layout), *a.module_names, *b.module_names}
    sizes, n_a, n_b = [], [], []
    for attention in (False, True):
        part = [name for name in layout.module_names if name in used and (name in ATTENTION_MODULES) == attention]
        if part:
            sizes.append(len(layout.indices(part)))
            n_a.append(len(a.where(part)))
            n_b.append(len(b.where(part)))
    return expected_jaccard(shared_distribution(sizes, n_a, n_b), len(a), len(b))


def _some(resampled: Mapping[str, NeuronSet]) -> None:
    if not resampled:
        raise CulnigError("there are no resamples; score at least one resample of the questions")
