"""The table of a finished attribution, and what it says of its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from culnig_fast.attributor import Attributor
from culnig_fast.provenance import provenance
from culnig_fast.questions import EncodedQuestions
from culnig_fast.resampling import per_row
from culnig_fast.running.diagnosis import check_finite
from culnig_fast.scores import ScoreTable

UNDERFLOW = 1e-150
"""A sample with a smaller P is lost: its scores are multiplied by P², which float64 rounds to 0 or nearly so."""


def finished_table(
    attributor: Attributor,
    encoded: EncodedQuestions,
    rows: tuple[tuple[str, ...], np.ndarray],
    probabilities: np.ndarray,
    totals: np.ndarray,
    metadata: Mapping[str, Any],
    checkpoint: Path | None = None,
) -> ScoreTable:
    """The table of a run.

    Args:
        attributor: what scored.
        encoded: the questions.
        rows: as `resampling.table_rows` gives.
        probabilities: float64 [samples], P of each.
        totals: float64 [rows, neurons].
        metadata: what the table says of its run, beside what is known of model and questions.
        checkpoint: the run's, to be removed once the table is on disk.

    Raises:
        CulnigError: a total is not finite.
    """
    check_finite(totals, attributor.layout)
    names, membership = rows
    ids = tuple(question.id for question in encoded.questions)
    return ScoreTable(
        totals=totals,
        groups=names,
        counts=per_row(membership, np.ones(len(ids)), len(names)),
        probability=per_row(membership, probabilities, len(names)),
        ids=ids,
        layout=attributor.layout,
        metadata={
            **provenance(attributor.architecture),
            "reduction": attributor.reduction,
            "padding": attributor.padding,
            "fusion": attributor.fusion.describe(),
            "unusable": list(encoded.unusable),
            "underflow": [ids[i] for i in np.flatnonzero(probabilities < UNDERFLOW)],
            **metadata,
        },
        checkpoint=checkpoint,
    )
