"""Bootstrap resamples of questions, as how often each question is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from culnig_fast.errors import CulnigError


def bootstrap_counts(groups: Sequence[str], resamples: int, seed: int = 0) -> np.ndarray:
    """How often each question is in each resample, int64 [questions, resamples].

    Every group keeps its number of questions: as many are drawn from it, with replacement, as it has. Two question
    lists of the same groups in the same order (a data set and its control set) get the same draws.

    Args:
        groups: [questions] of each question.
        resamples: how many.
        seed: of the draws.

    Raises:
        CulnigError: no questions, or fewer than one resample.
    """
    if not groups or resamples < 1:
        raise CulnigError(f"{resamples} resamples of {len(groups)} questions: at least one of each is needed")
    names = np.array(groups, dtype=object)
    source = np.random.default_rng(seed)
    counts = np.zeros((len(groups), resamples), dtype=np.int64)
    for name in dict.fromkeys(groups):
        rows = np.flatnonzero(names == name)
        counts[rows] = source.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples).T
    return counts
