"""The paired bootstrap against enumeration, the binomial distribution, SciPy and a plain loop."""

from __future__ import annotations

import itertools
import random
import tracemalloc

import numpy as np
import pytest
import scipy.stats

from culnig_fast.errors import CulnigError
from culnig_fast.statistics import holm, mean_interval, paired_bootstrap, resampled_means

RESAMPLES = 40_000


def generator(seed: int = 3) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def five_sigma(p: float, resamples: int = RESAMPLES) -> float:
    """Five standard deviations of a frequency estimated from that many resamples."""
    return 5 * (p * (1 - p) / resamples) ** 0.5 + 2 / resamples


def test_drawn_indices_have_the_bootstraps_distribution() -> None:
    values = np.array([-1.0, 0.25, 4.0])  # three distinct of three: indices are drawn
    drawn = resampled_means(values, RESAMPLES, generator())
    every = [sum(sample) / 3 for sample in itertools.product(values.tolist(), repeat=3)]
    assert set(np.round(drawn, 12)) == set(np.round(every, 12))
    for mean in sorted(set(every)):
        p = every.count(mean) / len(every)
        assert abs(np.isclose(drawn, mean).mean() - p) < five_sigma(p)


def test_drawn_counts_have_the_bootstraps_distribution() -> None:
    values = np.repeat([1.0, -1.0], [37, 90])  # two distinct of 127: counts are drawn
    drawn = resampled_means(values, RESAMPLES, generator())
    ones = np.round((drawn * 127 + 127) / 2)
    assert np.allclose((2 * ones - 127) / 127, drawn, rtol=0, atol=1e-15)
    for k in range(25, 50):
        p = scipy.stats.binom.cdf(k, 127, 37 / 127)
        assert abs((ones <= k).mean() - p) < five_sigma(p)


@pytest.mark.parametrize("n", [11, 301])
def test_interval_agrees_with_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.integers(0, 2, n).astype(float), rng.random(n)
    ours = paired_bootstrap(a, b, resamples=RESAMPLES, seed=1)
    theirs = scipy.stats.bootstrap(
        (a, b),
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        paired=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=rng,
    )
    # A quantile q of B draws lies between the quantiles q ± 5 σ of the same distribution, σ² = q (1 − q) / B.
    slack = 2 * five_sigma(0.025)
    distribution = theirs.bootstrap_distribution
    for mine, q in ((ours.low, 0.025), (ours.high, 0.975)):
        assert np.quantile(distribution, max(0, q - slack)) <= mine <= np.quantile(distribution, min(1, q + slack))
    assert ours.difference == pytest.approx(a.mean() - b.mean(), abs=1e-15)


def test_p_values_agree_with_a_plain_loop() -> None:
    a = [0, 1, 0, 0, 1, 0, 1, 1, 0, 0, 0, 1, 0]
    b = [1, 1, 0, 1, 1, 0, 0, 1, 1, 0, 1, 0, 0]
    rng = random.Random(5)
    at_least, at_most = 0, 0
    for _ in range(RESAMPLES):
        drawn = [rng.randrange(13) for _ in range(13)]
        difference = sum(a[i] for i in drawn) - sum(b[i] for i in drawn)
        at_least += difference >= 0
        at_most += difference <= 0
    result = paired_bootstrap(a, b, resamples=RESAMPLES)
    p = (1 + at_least) / (1 + RESAMPLES)
    assert 0.2 < p < 0.4
    assert abs(result.p_less - p) < 2**0.5 * five_sigma(p)
    assert abs(result.p_two_sided - 2 * min(p, (1 + at_most) / (1 + RESAMPLES))) < 2 * 2**0.5 * five_sigma(p)


def test_pairs_stay_together() -> None:
    # Both vary widely, their difference not at all: only a paired bootstrap sees a certain loss.
    b = np.linspace(-50, 50, 101)
    result = paired_bootstrap(b - 0.5, b)
    assert (result.difference, result.low, result.high) == (-0.5, -0.5, -0.5)
    assert result.p_less == 1 / 10_001
    assert result.p_two_sided == 2 / 10_001


def test_equal_runs_show_nothing() -> None:
    result = paired_bootstrap([True, False, True], [1, 0, 1])
    assert (result.difference, result.p_less, result.p_two_sided) == (0.0, 1.0, 1.0)


def test_direction_and_swap() -> None:
    rng = np.random.default_rng(0)
    good, bad = rng.random(200) < 0.7, rng.random(200) < 0.5
    worse, better = paired_bootstrap(bad, good), paired_bootstrap(good, bad)
    assert worse.difference == -better.difference < 0
    assert worse.p_less < 0.001
    assert better.p_less > 0.999
    assert worse.low == pytest.approx(-better.high, abs=0.02)


def test_one_question() -> None:
    result = paired_bootstrap([0.25], [0.5], resamples=7)
    assert (result.difference, result.low, result.high, result.n) == (-0.25, -0.25, -0.25, 1)
    assert result.p_less == 1 / 8


def test_seed_repeats_and_matters() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random(40), rng.random(40)
    assert paired_bootstrap(a, b, seed=9).to_dict() == paired_bootstrap(a, b, seed=9).to_dict()
    assert paired_bootstrap(a, b, seed=9).low != paired_bootstrap(a, b, seed=10).low


def test_chunks_make_the_same_draws_and_bound_memory() -> None:
    values = np.random.default_rng(1).random(50_000)
    tracemalloc.start()
    means = resampled_means(values, 300, generator())  # 120 MB of indices at once without chunks
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20
    assert len(set(means)) == 300
    first = values[generator().integers(50_000, size=(1, 50_000))].mean()
    assert means[0] == first


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1, 2], [1]), {}, "a has 2 values and b has 1"),
        (([], []), {}, "no values"),
        (([1, float("nan")], [1, 2]), {}, r"a\[1\] is nan"),
        (([1, 2], [float("inf"), 2]), {}, r"b\[0\] is inf"),
        (([[1, 2]], [1, 2]), {}, r"a must hold one number a question, not an array of shape \[1, 2\]"),
        ((["x"], [1]), {}, "a must hold one number a question"),
        (([1], [1]), {"resamples": 0}, "resamples is 0"),
        (([1], [1]), {"seed": -1}, "seed is -1"),
        (([1], [1]), {"confidence": 1.0}, "confidence is 1.0"),
        (([1], [1]), {"confidence": float("nan")}, "confidence is nan"),
    ],
)
def test_bad_input(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(CulnigError, match=message):
        paired_bootstrap(*arguments, **options)


def test_interval_of_a_mean_agrees_with_scipy() -> None:
    rng = np.random.default_rng(8)
    values = rng.choice([0.0, 33.3, 100.0], size=400, p=[0.2, 0.3, 0.5])
    ours = mean_interval(values, resamples=RESAMPLES)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=rng)
    low, high = theirs.confidence_interval
    tolerance = 0.03 * (high - low)  # the Monte-Carlo error of a 2.5 % quantile is about 1 % of the interval
    assert ours.mean == pytest.approx(values.mean())
    assert abs(ours.low - low) < tolerance
    assert abs(ours.high - high) < tolerance


@pytest.mark.parametrize("m", [1, 2, 7, 40])
def test_holm_agrees_with_statsmodels(m: int) -> None:
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(m)
    p = rng.random(m) ** 3
    p[: m // 3] = p[0]  # ties
    adjusted = holm(p)
    rejected, expected, *_ = multipletests(p, alpha=0.05, method="holm")
    assert np.allclose(adjusted, expected, rtol=0, atol=1e-15)
    assert ((adjusted <= 0.05) == rejected).all()


def test_holm_by_hand_and_refusals() -> None:
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]).tolist() == []
    with pytest.raises(CulnigError, match=r"p\[1\] is 1.5; a p-value lies in 0…1"):
        holm([0.1, 1.5])
    with pytest.raises(CulnigError, match="p\\[0\\] is nan"):
        holm([float("nan")])


def test_rounding_does_not_decide_a_tie() -> None:
    """Thirds that add up to the same mean: every resample of equal pairs is a tie, and a tie speaks for nobody."""
    thirds = np.array([100 / 3, 200 / 3, 100 * (2 / 3), 100 * (1 / 3)] * 10)
    same = np.array([33.33333333333333, 66.66666666666667, 66.66666666666666, 33.333333333333336] * 10)
    assert (thirds != same).any()
    found = paired_bootstrap(thirds, same, resamples=200)
    assert found.p_less == 1.0 and found.p_two_sided == 1.0
