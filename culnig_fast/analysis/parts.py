"""MLP against attention: what suppressing each part of a set costs (CULNIG, section 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.statistics import holm, paired_bootstrap
from culnig_fast.tables.figures import Drawing, TaskPoints

if TYPE_CHECKING:
    import pandas as pd

PARTS = {"MLP alone": "mlp", "attention alone": "attention", "both": "suppressed"}
"""What a row is called → the condition of a run."""

RANDOM = "random"


def parts_lost(
    results: Mapping[str, TaskPoints],
    sizes: Mapping[str, int],
    random: Sequence[str],
    drawing: Drawing | None = None,
    parts: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Points lost on each task with MLP neurons, attention neurons, both, and random ones suppressed.

    Args:
        results: task → points by condition, with `original`, the parts' and the random conditions.
        sizes: neurons by condition.
        random: the random conditions; their points are averaged question by question.
        drawing: of the intervals and tests.
        parts: name → condition; `PARTS` by default.

    Returns:
        One row a task and part: `task`, `part`, `neurons`, `questions`, `lost` (original − suppressed, points), its
        interval `low`, `high` (paired bootstrap over the questions), `p` (one-sided, of a lower mean than the random
        sets'; NaN for those themselves) and `p_holm` (adjusted over the tasks of a part, as in the tables).

    Raises:
        CulnigError: no task, no random condition, or a condition that was not evaluated.
    """
    import pandas as pd

    drawing = drawing or Drawing()
    if not results or not random:
        raise CulnigError("MLP and attention are compared on at least one task and with at least one random set")
    rows = []
    for name, condition in {**(PARTS if parts is None else parts), RANDOM: None}.items():
        for label, task in results.items():
            mean = np.mean([task.of(one) for one in random], axis=0)
            values = mean if condition is None else task.of(condition)
            found = paired_bootstrap(
                task.of("original"), values,
                resamples=drawing.resamples, seed=drawing.seed, confidence=drawing.confidence,
            )  # fmt: skip
            rows.append(
                {
                    "task": label,
                    "part": name,
                    "neurons": sizes[random[0] if condition is None else condition],
                    "questions": len(values),
                    "lost": found.difference,
                    "low": found.low,
                    "high": found.high,
                    "p": float("nan") if condition is None else drawing.p_less(values, mean),
                }
            )
    frame = pd.DataFrame(rows)
    frame["p_holm"] = float("nan")
    for name in dict.fromkeys(frame["part"]):
        own = (frame["part"] == name) & frame["p"].notna()
        frame.loc[own, "p_holm"] = holm(frame.loc[own, "p"].to_numpy())
    return frame
