"""Tables against plain arithmetic, SciPy and statsmodels on the same data."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests

from culnig_fast.errors import CulnigError
from culnig_fast.tables.figures import (
    Drawing,
    TaskPoints,
    against_random,
    country_table,
    enhanced_table,
    main_table,
)
from culnig_fast.tables.published import published_models, published_table
from culnig_fast.tables.table import Cell, Table

SEEDS = (0, 4, 5)
SIZES = {"suppressed": 14, "enhanced": 14, "mlp": 12, "specific-Iran": 3, "specific-UK": 4}
DRAWING = Drawing(resamples=20_000)


def task(seed: int, n: int, accuracy: float, drop: float) -> TaskPoints:
    """Right and wrong answers; suppression turns a share of the right ones wrong, random sets turn 2 %."""
    rng = np.random.default_rng(seed)
    original = (rng.random(n) < accuracy).astype(float) * 100
    points = {"original": original}
    for name, share in [("suppressed", drop), ("enhanced", drop / 2), ("mlp", drop / 3), ("specific-Iran", drop),
                        ("specific-UK", 0.0), *((f"random-{s}", 0.02) for s in SEEDS)]:  # fmt: skip
        points[name] = original * (rng.random(n) >= share)
    groups = tuple(("Iran", "UK")[i % 2] for i in range(n))
    return TaskPoints(groups, points)


@pytest.fixture
def results() -> dict[str, TaskPoints]:
    return {"culture": task(1, 400, 0.8, 0.3), "sense": task(2, 300, 0.7, 0.05), "pairs": task(3, 120, 0.6, 0.02)}


def scipy_p(values: np.ndarray, than: np.ndarray) -> float:
    """One-sided bootstrap p of a lower mean, from SciPy's resampling; 0 but for rounding is a tie."""
    found = scipy.stats.bootstrap(
        (values - than,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(9)
    )
    return float((1 + (found.bootstrap_distribution >= -1e-9).sum()) / 20_001)


def test_main_table(results: dict[str, TaskPoints]) -> None:
    table = main_table(results, SEEDS, SIZES, DRAWING)
    (_, _, original), (_, neurons, suppressed), (_, _, random) = table.rows
    assert neurons == 14
    expected_p = []
    for i, points in enumerate(results.values()):
        draws = np.stack([points.points[f"random-{seed}"] for seed in SEEDS])
        assert original[i].value == pytest.approx(points.points["original"].mean())
        assert suppressed[i].value == pytest.approx(points.points["suppressed"].mean())
        assert random[i].value == pytest.approx(draws.mean())
        assert random[i].sd == pytest.approx(draws.mean(1).std(ddof=1))
        interval = scipy.stats.bootstrap(
            (points.points["suppressed"],), np.mean, n_resamples=20_000, method="percentile",
            rng=np.random.default_rng(9),
        ).confidence_interval  # fmt: skip
        # Means lie on a grid of 100 / n; a quantile that two draws place on either side of a step differs by one.
        tolerance = max(0.03 * (interval.high - interval.low), 100 / len(points.groups) + 1e-9)
        assert suppressed[i].low == pytest.approx(interval.low, abs=tolerance)
        assert suppressed[i].high == pytest.approx(interval.high, abs=tolerance)
        expected_p.append(scipy_p(points.points["suppressed"], draws.mean(0)))
    p = [cell.p for cell in suppressed]
    assert p == pytest.approx(expected_p, abs=0.02)
    rejected, adjusted, *_ = multipletests(p, alpha=0.05, method="holm")
    assert [cell.p_holm for cell in suppressed] == pytest.approx(list(adjusted))
    assert [cell.bold for cell in suppressed] == list(rejected)
    assert {cell.bold for cell in suppressed} == {True, False}  # both cases were looked at
    assert not any(cell.bold for cell in (*original, *random))


def test_holm_is_over_the_tasks_of_a_row(results: dict[str, TaskPoints]) -> None:
    rows = {"original": "original", "both": "suppressed", "MLP": "mlp"}
    table = against_random("ablation", "Pools", rows, results, SEEDS, SIZES, DRAWING)
    for _, neurons, cells in table.rows[1:]:
        adjusted = multipletests([cell.p for cell in cells], method="holm")[1]
        assert [cell.p_holm for cell in cells] == pytest.approx(list(adjusted))
        assert neurons in (14, 12)
    main = main_table(results, SEEDS, SIZES, DRAWING)
    assert table.rows[1][2] == main.rows[1][2]


def test_enhanced_is_tested_on_both_sides_against_the_original(results: dict[str, TaskPoints]) -> None:
    better = {
        label: TaskPoints(t.groups, {**t.points, "enhanced": t.points["original"]}) for label, t in results.items()
    }
    gained = better["culture"].points["original"].copy()
    gained[np.flatnonzero(gained == 0)[:30]] = 100
    better["culture"] = TaskPoints(
        better["culture"].groups, {"original": better["culture"].of("original"), "enhanced": gained}
    )
    _, (_, _, cells) = enhanced_table(better, SIZES, DRAWING).rows
    assert [cell.bold for cell in cells] == [True, False, False]
    assert cells[1].p == 1.0


def test_countries(results: dict[str, TaskPoints]) -> None:
    sets = {"Iran": "specific-Iran", "UK": "specific-UK"}
    table = country_table("culture", results["culture"], sets, SIZES, DRAWING)
    assert table.columns == ("Iran", "UK")
    points = results["culture"]
    uk = np.array([group == "UK" for group in points.groups])
    (_, _, original), (name, neurons, iran), (_, _, own) = table.rows
    assert (name, neurons) == ("Iran suppressed", 3)
    assert original[1].value == pytest.approx(points.points["original"][uk].mean())
    assert iran[1].value == pytest.approx(points.points["specific-Iran"][uk].mean())
    assert iran[1].n == uk.sum()
    adjusted = multipletests([cell.p for cell in (*iran, *own)], method="holm")[1]
    assert [cell.p_holm for cell in (*iran, *own)] == pytest.approx(list(adjusted))
    assert iran[0].bold
    assert not own[0].bold


def test_a_missing_condition_is_named(results: dict[str, TaskPoints]) -> None:
    with pytest.raises(CulnigError, match="condition 'random-7' was not evaluated; there are original"):
        main_table(results, (7,), SIZES, DRAWING)


def test_published_figures_stand_beside_the_runs() -> None:
    assert set(published_models()) == {"gemma-3-12b-it", "Qwen3-14B", "Llama-3.1-8B-Instruct"}
    cells = (Cell(60.0), Cell(50.0))
    own = Table("main", "t", ("own name", "pick"), tuple((r, 10, cells) for r in ("a", "b", "c")))
    table = published_table("gemma-3-12b-it", own, {"own name": "blend", "pick": "pick"})
    by_row = {name: (neurons, cells) for name, neurons, cells in table.rows}
    neurons, theirs = by_row["culture-general suppressed, published"]
    assert neurons == 8087
    assert theirs[0] is not None and theirs[0].value == 37.93
    assert theirs[1] is None  # no benchmark of theirs
    difference = by_row["culture-general suppressed, difference"][1][0]
    assert difference is not None and difference.value == pytest.approx(60 - 37.93)
    assert by_row["random suppressed, this run"][1] == cells
    without = published_table("Qwen3-14B", own, {"own name": "blend", "pick": "pick"})
    assert dict((name, cells[0]) for name, _, cells in without.rows)["random suppressed, published"] is None
    with pytest.raises(CulnigError, match="no published figures of 'phi-4'; there are some of gemma-3-12b-it"):
        published_table("phi-4", own, {})
