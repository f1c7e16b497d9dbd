"""How the scores of all neurons of a pool are spread, and where the thresholds cut."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.neurons import ATTENTION_MODULES
from culnig_fast.scores import ScoreTable
from culnig_fast.selection.pools import mlp_modules_of
from culnig_fast.selection.ranking import top_count

if TYPE_CHECKING:
    import pandas as pd

MOST_DECADES = 8
"""Powers of ten on either side of 0 that get bins of their own."""

QUANTILES = (0.0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)


def score_histogram(
    neur: ScoreTable,
    control: ScoreTable | None,
    chosen: NeuronSet,
    *,
    mlp_share: float = 0.01,
    attention_share: float = 0.002,
    per_decade: int = 8,
) -> pd.DataFrame:
    """Neurons of each pool by their score d (CULNIG, section 5), in bins that widen away from 0.

    Bins are equal in the logarithm of |d|, `per_decade` in a power of ten, down to the power of ten below which a
    tenth of the neurons lie (at most eight powers below the largest); one bin around 0 takes what is smaller.

    Args:
        neur, control: as for `select_general`.
        chosen: the culture-general set.
        mlp_share, attention_share: the thresholds that it was chosen by.
        per_decade: bins in a power of ten.

    Returns:
        One row a pool (`mlp`, `attention`) and bin, also the empty ones between others: `pool`, `low`, `high` (the
        bin holds low ≤ d < high, the last one also d = high), `neurons`, `candidates` (of them, d at least the
        threshold), `selected` (of them, in `chosen`), `threshold` (the least d of the pool's top share; NaN where the
        share is less than one neuron), `linear` (|d| below it is one bin).

    Raises:
        CulnigError: tables without samples, a share outside 0…1, fewer than one bin a decade.
    """
    import pandas as pd

    if per_decade < 1:
        raise CulnigError(f"per_decade is {per_decade}; choose at least one bin in a power of ten")
    d, layout = mean_difference(neur, control), neur.layout
    flat = chosen.flat(layout)
    marked = np.zeros(layout.size, dtype=bool)
    marked[flat] = True
    pools: dict[str, tuple[tuple[str, ...], float, str]] = {"mlp": (mlp_modules_of(layout), mlp_share, "mlp_share")}
    attention = tuple(name for name in ATTENTION_MODULES if name in layout.module_names)
    if attention:
        pools["attention"] = (attention, attention_share, "attention_share")
    rows: list[dict[str, Any]] = []
    for pool, (modules, share, name) in pools.items():
        index = layout.indices(modules)
        values, own = d[index], marked[index]
        count = top_count(len(values), share, name)
        threshold = float(np.partition(values, len(values) - count)[-count]) if count else float("nan")
        edges, linear = symmetric_log_edges(values, per_decade)
        columns = {
            "neurons": np.histogram(values, edges)[0],
            "candidates": np.histogram(values[values >= threshold], edges)[0],
            "selected": np.histogram(values[own], edges)[0],
        }
        filled = np.flatnonzero(columns["neurons"])
        for i in range(filled[0], filled[-1] + 1):
            counts = {key: int(column[i]) for key, column in columns.items()}
            rows.append(
                {"pool": pool, "low": edges[i], "high": edges[i + 1], **counts, "threshold": threshold,
                 "linear": linear}
            )  # fmt: skip
    return pd.DataFrame(rows)


def score_quantiles(neur: ScoreTable, control: ScoreTable | None) -> pd.DataFrame:
    """Quantiles of d within every layer and module: `layer`, `module`, `neurons`, `quantile`, `score`."""
    import pandas as pd

    d = mean_difference(neur, control)
    rows = []
    for site in neur.layout.sites:
        found = np.quantile(d[neur.layout.slice(site.module_name, site.layer_idx)], QUANTILES)
        rows += [
            {"layer": site.layer_idx, "module": site.module_name, "neurons": site.width, "quantile": q, "score": score}
            for q, score in zip(QUANTILES, found.tolist(), strict=True)
        ]
    return pd.DataFrame(rows)


def mean_difference(neur: ScoreTable, control: ScoreTable | None) -> np.ndarray:
    """d = s(neur) / N_neur − s(control) / N_control of every neuron, all groups summed, float64 [neurons]."""
    result: np.ndarray = _total(neur, "neur") / neur.n_samples
    if control is not None:
        result -= _total(control, "control") / control.n_samples
    if not np.isfinite(result).all():
        raise CulnigError("some scores are NaN or infinite; score again in a wider dtype, float32 or bfloat16")
    return result


def symmetric_log_edges(values: np.ndarray, per_decade: int) -> tuple[np.ndarray, float]:
    """Bin edges, float64 [bins + 1], symmetric about 0 and covering all values, and where the middle bin ends."""
    size = np.abs(values)
    largest = float(size.max())
    if largest == 0:
        return np.array([-1.0, 1.0]), 1.0
    top = math.ceil(math.log10(largest) * (1 - 1e-15) + 1e-12)
    tenth = float(np.quantile(size, 0.1))
    bottom = max(math.floor(math.log10(tenth)) if tenth > 0 else top - MOST_DECADES, top - MOST_DECADES)
    bottom = min(bottom, top - 1)
    positive = 10.0 ** (bottom + np.arange((top - bottom) * per_decade + 1) / per_decade)
    positive[-1] = max(positive[-1], largest)
    return np.concatenate([-positive[::-1], positive]), float(positive[0])


def _total(table: ScoreTable, name: str) -> np.ndarray:
    if table.n_samples < 1:
        raise CulnigError(f"the {name} scores hold no samples; score at least one question")
    total: np.ndarray = np.zeros(table.layout.size)
    for row in table.totals:
        total += row
    return total
