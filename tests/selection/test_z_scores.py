"""Z scores over groups: the core and its twin bit for bit, against the definition, and of equal or unfit values."""

from __future__ import annotations

import statistics
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from core_samples import INF, TINY, outcome, sweeps
from hypothesis import given, settings
from hypothesis import strategies as st

from culnig_fast.selection import numpy_core as twin


@settings(max_examples=200, deadline=None)
@given(sweeps(), st.data())
def test_z_of_gathered_columns(core: ModuleType, arguments: tuple[Any, ...], data: st.DataObject) -> None:
    table, samples, control, control_samples, *_ = arguments
    pairing = np.array(
        [] if control is None else [data.draw(st.integers(0, len(control) - 1)) for _ in table], dtype=np.int64
    )
    columns = np.array(
        data.draw(st.lists(st.integers(0, max(0, table.shape[1] - 1)), max_size=9 if table.shape[1] else 0)),
        dtype=np.int64,
    )
    rows = np.array([data.draw(st.integers(0, len(table) - 1)) for _ in columns], dtype=np.int64)
    given_ = (table, samples, control, control_samples, pairing, columns, rows)
    expected = outcome(twin.group_z, *given_)
    assert all(outcome(core.group_z, *given_, threads) == expected for threads in (1, 3))
    if expected[0] is not ValueError:
        # Gathered in the plain way, column by column.
        for j, (column, row) in enumerate(zip(columns, rows, strict=True)):
            values = table[:, column].astype(np.float64) / samples
            if control is not None:
                values = values - control[pairing, column].astype(np.float64) / control_samples
            assert twin.z_scores(values[:, None].copy(), int(row))[0] == core.group_z(*given_)[j]


def test_z_of_many_columns_over_threads(core: ModuleType) -> None:
    rng = np.random.default_rng(5)
    table, control = rng.standard_normal((7, 3000)), rng.standard_normal((9, 3000))
    columns, rows = rng.integers(0, 3000, 2501), rng.integers(0, 7, 2501)
    given_ = (table, 3, control, 5, np.array([3, 1, 0, 8, 8, 2, 4]), columns, rows)
    expected = outcome(twin.group_z, *given_)
    table[4, columns[[700, 2000]]] = np.inf
    message = outcome(twin.group_z, *given_)
    assert message[1].endswith("are not finite")
    for threads in (1, 2, 7):
        assert outcome(core.group_z, *given_, threads) == message
    table[4, columns[[700, 2000]]] = 1e-310
    assert outcome(core.group_z, *given_, 2) == outcome(twin.group_z, *given_) != expected


@settings(max_examples=200, deadline=None)
@given(sweeps(), st.data())
def test_z_scores_of_any_numbers(core: ModuleType, arguments: tuple[Any, ...], data: st.DataObject) -> None:
    values = arguments[0].astype(np.float64)
    row = data.draw(st.integers(0, len(values) - 1))
    assert outcome(core.z_scores, values, row) == outcome(twin.z_scores, values, row)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-1000, 1000), min_size=2, max_size=17),
    st.sampled_from([1.0, 1e-300, 1e300, 2.0**-1070]),
)
def test_z_scores_are_their_definition_at_any_scale(core: ModuleType, column: list[int], scale: float) -> None:
    values = np.array([column], dtype=np.float64).T * scale
    deviation = statistics.pstdev(column)
    for row in range(len(column)):
        expected = (column[row] - statistics.fmean(column)) / deviation if deviation else 0.0
        # Relative to the largest value, 17 additions lose at most 17 · 2⁻⁵³; the deviation is at least
        # 1/17 of a unit, and the largest value 1000 units.
        tolerance = 1e-15 * 17 * 17 * 1000
        assert core.z_scores(values, row).item() == pytest.approx(expected, abs=tolerance)


def test_equal_values_have_z_of_exactly_zero(either: ModuleType) -> None:
    column = np.full(16, 0.1)
    assert np.add.accumulate(column)[-1] / 16 != 0.1  # the plain mean is off, and would give z = ±1
    values = np.stack([column, np.full(16, TINY), np.full(16, 1e308), np.zeros(16)], axis=1)
    assert either.z_scores(values, 3).tolist() == [0.0] * 4


def test_z_scores_need_finite_values(either: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"^values\[1, 0\] is not finite$"):
        either.z_scores(np.array([[0.0, INF], [np.nan, 0.0]]), 0)
