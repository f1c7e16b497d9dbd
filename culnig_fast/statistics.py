"""Paired bootstrap: is one run better than another on the same questions, or was it chance? Intervals, and Holm."""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from culnig_fast.errors import CulnigError

_CHUNK_BYTES = 32 * 2**20
"""Memory for one batch of resamples."""


@dataclass(frozen=True)
class BootstrapResult:
    """What `paired_bootstrap` found about mean(a) − mean(b).

    Attributes:
        difference: the observed difference of means, in the unit of the values.
        low, high: its percentile confidence interval.
        p_less: one-sided p for a < b, (1 + resamples with a difference ≥ 0) / (1 + resamples).
        p_two_sided: twice the smaller one-sided p, at most 1.
        n: pairs.
        resamples, confidence, seed: as given.
    """

    difference: float
    low: float
    high: float
    p_less: float
    p_two_sided: float
    n: int
    resamples: int
    confidence: float
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return asdict(self)


def paired_bootstrap(
    a: Any, b: Any, *, resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> BootstrapResult:
    """Resample the pairs (a_i, b_i) with replacement, and see how often the sign of mean(a) − mean(b) holds.

    The mean of a resample depends only on how often each distinct difference a_i − b_i was drawn. With few
    distinct ones (accuracies have three) these counts are drawn at once, as one multinomial sample; else the
    n indices are. Both have exactly the bootstrap's distribution. Memory stays below about 100 MB.

    Args:
        a, b: values of the same n questions in the same order, [n]; booleans count as 0 and 1.
        resamples: number B of bootstrap samples.
        seed: of NumPy's PCG64.
        confidence: of the interval, between 0 and 1.

    Raises:
        CulnigError: the lengths differ, there are no values, one is NaN or infinite, or an option is out of
            range.
    """
    first, second = _values("a", a), _values("b", b)
    if len(first) != len(second):
        raise CulnigError(
            f"a has {len(first)} values and b has {len(second)}; "
            "a paired bootstrap needs both runs on the same questions"
        )
    if not len(first):
        raise CulnigError("there are no values to compare; evaluate at least one question")
    if operator.index(resamples) < 1:
        raise CulnigError(f"resamples is {resamples}; draw at least one")
    if operator.index(seed) < 0:
        raise CulnigError(f"the seed is {seed}; choose one that is not negative")
    if not 0 < confidence < 1:
        raise CulnigError(f"confidence is {confidence}; choose it between 0 and 1, e.g. 0.95")

    differences = first - second
    means = resampled_means(differences, resamples, np.random.Generator(np.random.PCG64(seed)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    p_less = (1 + int((means >= 0).sum())) / (1 + resamples)
    p_greater = (1 + int((means <= 0).sum())) / (1 + resamples)
    return BootstrapResult(
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        p_less=p_less,
        p_two_sided=min(1.0, 2 * min(p_less, p_greater)),
        n=len(differences),
        resamples=int(resamples),
        confidence=float(confidence),
        seed=int(seed),
    )


@dataclass(frozen=True)
class MeanInterval:
    """A mean and its percentile bootstrap interval, in the unit of the values."""

    mean: float
    low: float
    high: float


def mean_interval(values: Any, *, resamples: int = 10_000, seed: int = 0, confidence: float = 0.95) -> MeanInterval:
    """Bootstrap interval of the mean of n values, [n]; arguments and errors as for `paired_bootstrap`.

    The values are resampled exactly as `paired_bootstrap` resamples differences from 0.
    """
    found = paired_bootstrap(values, np.zeros(np.shape(values)), resamples=resamples, seed=seed, confidence=confidence)
    return MeanInterval(found.difference, found.low, found.high)


def holm(p_values: Any) -> np.ndarray:
    """Holm's step-down adjustment of m p-values (Scandinavian Journal of Statistics, 1979), float64 [m].

    The i-th smallest is multiplied by m − i + 1; an adjusted value is at least that of every smaller p, and at most 1.
    Rejecting where the result is at most α keeps the chance of any false rejection of the family at α.

    Raises:
        CulnigError: a value is not a number in 0…1.
    """
    p = _values("p", p_values)
    unfit = np.flatnonzero((p < 0) | (p > 1))
    if unfit.size:
        raise CulnigError(f"p[{unfit[0]}] is {p[unfit[0]]}; a p-value lies in 0…1")
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def resampled_means(values: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Means, float64 [resamples], of bootstrap samples of `values` float64 [n], n ≥ 1, all finite."""
    n = len(values)
    distinct, counts = np.unique(values, return_counts=True)
    means = np.empty(resamples)
    # A multinomial count costs 30 to 150 times a drawn index (50 to 1000 distinct values).
    few = 50 * len(distinct) <= n
    width = len(distinct) if few else n
    rows = max(1, _CHUNK_BYTES // (8 * width))
    for start in range(0, resamples, rows):
        here = slice(start, min(start + rows, resamples))
        size = here.stop - here.start
        if few:
            means[here] = generator.multinomial(n, counts / n, size=size) @ distinct / n
        else:
            means[here] = values[generator.integers(n, size=(size, n))].mean(axis=1)
    return means


def _values(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CulnigError(f"{name} must hold one number a question ({error})") from error
    if array.ndim != 1:
        raise CulnigError(f"{name} must hold one number a question, not an array of shape {list(array.shape)}")
    unfit = np.flatnonzero(~np.isfinite(array))
    if unfit.size:
        raise CulnigError(f"{name}[{unfit[0]}] is {array[unfit[0]]}; leave out questions without a value")
    return array
