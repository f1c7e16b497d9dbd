"""Which rows of a score table each question counts in: its group, or bootstrap resamples of all questions."""

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


def table_rows(group_of: Sequence[str], resamples: int = 0, seed: int = 0) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of a table's rows, and where each question counts.

    Args:
        group_of: [questions] of each question.
        resamples: 0 for a row a group, else that many bootstrap resamples, named "0", "1", ….
        seed: of their draws.

    Returns:
        The names, and each question's row, int64 [questions], or its counts, float64 [questions, rows].
    """
    if resamples:
        counts = bootstrap_counts(group_of, resamples, seed).astype(np.float64)
        return tuple(str(number) for number in range(resamples)), counts
    names = tuple(dict.fromkeys(group_of))
    place = {name: row for row, name in enumerate(names)}
    return names, np.array([place[name] for name in group_of], dtype=np.int64)


def per_row(membership: np.ndarray, values: np.ndarray, rows: int) -> np.ndarray:
    """The values [questions] of each row's questions added up, float64 [rows]; `membership` as `table_rows` has it."""
    if membership.ndim == 2:
        return np.asarray(membership.T @ values)
    return np.bincount(membership, weights=values, minlength=rows)
