"""The C++ core and its NumPy twin against each other, bit for bit, and against definitions written out."""

from __future__ import annotations

import math
import shutil
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from culnig_fast import _selection_numpy as twin
from culnig_fast import ranking

INF = math.inf
TINY = 5e-324
SPECIAL = [0.0, -0.0, 1.0, -1.0, INF, -INF, TINY, -TINY, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1]
NUMBERS = st.one_of(st.sampled_from(SPECIAL), st.floats(allow_nan=False))
SCALES = [1.0, 1e-300, 1e300, 2.0**-1070]
FEW = st.sampled_from([0.0, -0.0, 1.0, TINY])


@pytest.fixture(scope="module")
def core() -> ModuleType:
    return pytest.importorskip("culnig_fast._selection", reason="installed without a compiler")


@pytest.fixture(params=["C++", "NumPy"])
def either(request: pytest.FixtureRequest) -> ModuleType:
    if request.param == "NumPy":
        return twin
    return pytest.importorskip("culnig_fast._selection", reason="installed without a compiler")


@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")
def test_core_is_in_use_where_there_is_a_compiler() -> None:
    assert ranking.implementation() == "C++"


def outcome(function: Any, *arguments: Any) -> tuple[Any, ...]:
    """Bits, or the error's type and text."""
    try:
        result = function(*arguments)
    except (TypeError, ValueError) as error:
        return type(error), str(error)
    # The sign of a NaN that an operation makes is the processor's choice.
    result = np.where(np.isnan(result), np.nan, result) if result.dtype == np.float64 else result
    return result.dtype, result.shape, result.tobytes()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(NUMBERS, FEW), max_size=65), st.data())
@example([], None)
@example([0.0] * 7, None)
def test_top_k_is_a_stable_descending_sort(core: ModuleType, values: list[float], data: st.DataObject | None) -> None:
    n = len(values)
    k = n if data is None else data.draw(st.integers(0, n))
    # Python's sort is stable, and -0.0 == 0.0 there too.
    expected = sorted(range(n), key=lambda i: values[i], reverse=True)[:k]
    array = np.array(values, dtype=np.float64)
    assert core.top_k(array, k).tolist() == expected
    assert outcome(core.top_k, array, k) == outcome(twin.top_k, array, k)


@pytest.mark.parametrize("n", [1, 2, 1023, 40_001])
@pytest.mark.parametrize("shape", ["random", "ascending", "descending", "equal", "coarse"])
def test_top_k_of_long_arrays(core: ModuleType, shape: str, n: int) -> None:
    rng = np.random.default_rng(n)
    values = {
        "random": rng.standard_normal(n),
        "ascending": np.arange(n, dtype=float),
        "descending": -np.arange(n, dtype=float),
        "equal": np.full(n, 0.3),
        "coarse": rng.integers(-3, 3, n) * 0.5,
    }[shape]
    for k in {0, 1, n // 100, n // 2, n - 1, n}:
        assert outcome(core.top_k, values, k) == outcome(twin.top_k, values, k)


def test_top_k_names_the_first_nan(either: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"^values\[2\] is NaN$"):
        either.top_k(np.array([1.0, -INF, np.nan, np.nan]), 0)


TABLES = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 9)).flatmap(
    lambda shape: st.tuples(
        *(
            st.lists(NUMBERS, min_size=rows * shape[2], max_size=rows * shape[2]).map(
                lambda cells, rows=rows: np.array(cells, dtype=np.float64).reshape(rows, shape[2])
            )
            for rows in shape[:2]
        ),
        st.lists(st.tuples(st.integers(0, shape[2]), st.integers(0, shape[2])).map(sorted), max_size=4).map(
            lambda pairs: np.array(pairs, dtype=np.int64).reshape(-1, 2)
        ),
    )
)


def added_up(values: np.ndarray) -> float:
    """In order, one rounding each; Python's sum compensates roundings since 3.12."""
    total, *others = values.tolist()
    for value in others:
        total += value
    return total


@settings(max_examples=200, deadline=None)
@given(TABLES, st.integers(1, 2**53), st.integers(1, 7), st.booleans())
def test_mean_difference_is_its_definition(
    core: ModuleType, tables: tuple[np.ndarray, ...], samples: int, control_samples: int, subtract: bool
) -> None:
    table, control, ranges = tables
    arguments = (table, samples, control if subtract else None, control_samples, ranges)
    expected = []
    for start, stop in ranges.tolist():
        for column in range(start, stop):
            d = added_up(table[:, column]) / samples
            if subtract:
                d -= added_up(control[:, column]) / control_samples
            expected.append(d)
    np.testing.assert_array_equal(core.mean_difference(*arguments), np.array(expected))
    assert outcome(core.mean_difference, *arguments) == outcome(twin.mean_difference, *arguments)


def test_threads_and_strides_change_no_bit(core: ModuleType) -> None:
    n = 4096 * 64 + 129
    rng = np.random.default_rng(7)
    table, control = rng.standard_normal((5, n)), rng.standard_normal((3, n))
    ranges = np.array([[5, n - 3], [0, 1], [4095, 8193]])
    every_second = np.repeat(table, 2, axis=0)[::2]
    assert every_second.strides[0] == 2 * 8 * n
    expected = twin.mean_difference(table, 17, control, 19, ranges).tobytes()
    for threads in (0, 1, 2, 3, 16):
        assert core.mean_difference(table, 17, control, 19, ranges, threads).tobytes() == expected
        assert core.mean_difference(every_second, 17, control, 19, ranges, threads).tobytes() == expected


def test_memory_mapped_read_only_tables_are_read_in_place(either: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "table"
    np.arange(15.0).tofile(path)
    table = np.memmap(path, np.float64, mode="r", shape=(3, 5))
    result = either.mean_difference(table, 3, None, 1, np.array([[1, 4]]))
    assert result.tolist() == [6.0, 7.0, 8.0]
    assert result.flags.writeable


@settings(max_examples=200, deadline=None)
@given(TABLES, st.data())
def test_z_scores_of_any_numbers(core: ModuleType, tables: tuple[np.ndarray, ...], data: st.DataObject) -> None:
    values = tables[0]
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


ONE = np.ones((1, 4))
PAIRS = np.array([[0, 4]])
TOP, MEAN, Z = "top_k", "mean_difference", "z_scores"
TYPE, VALUE = TypeError, ValueError
UNFIT = "must be aligned and contiguous along its last dimension"
BAD = [
    (TOP, ([1.0], 1), TYPE, "values must be a NumPy array, not list"),
    (TOP, (np.ones(3, np.float32), 1), TYPE, "values must be float64, not float32"),
    (TOP, (np.ones(3, ">f8"), 1), TYPE, "values must be float64, not >f8"),
    (TOP, (ONE, 1), VALUE, "values must have 1 dimension(s), not 2"),
    (TOP, (np.ones(6)[::2], 1), VALUE, f"values {UNFIT}"),
    (TOP, (np.ones(3), 4), VALUE, "k must be between 0 and 3, not 4"),
    (TOP, (np.ones(3), -1), VALUE, "k must be between 0 and 3, not -1"),
    (TOP, (np.ones(3), 1.0), TYPE, "k must be a whole number, not float"),
    (TOP, (np.ones(3), 2**70), VALUE, f"k must fit in 64 bits, not {2**70}"),
    (MEAN, (None, 1, None, 1, PAIRS), TYPE, "table must be a NumPy array, not NoneType"),
    (MEAN, (ONE[:0], 1, None, 1, PAIRS), VALUE, "table must have at least one row"),
    (MEAN, (ONE, 0, None, 1, PAIRS), VALUE, "samples must be between 1 and 2**53, not 0"),
    (MEAN, (ONE, 2.5, None, 1, PAIRS), TYPE, "samples must be a whole number, not float"),
    (MEAN, (ONE, 1, ONE, -3, PAIRS), VALUE, "control_samples must be between 1 and 2**53, not -3"),
    (MEAN, (ONE, 1, np.ones((2, 3)), 1, PAIRS), VALUE, "control has 3 columns, but table has 4"),
    (MEAN, (ONE, 1, np.ones((0, 4)), 1, PAIRS), VALUE, "control must have at least one row"),
    (MEAN, (ONE, 1, None, 1, PAIRS.astype(float)), TYPE, "ranges must be int64, not float64"),
    (MEAN, (ONE, 1, None, 1, PAIRS[:, :1]), VALUE, "ranges must have shape [n, 2], not [n, 1]"),
    (MEAN, (ONE, 1, None, 1, np.array([[0, 1], [2, 5]])), VALUE,
     "ranges[1] is 2 to 5, outside the table's columns 0 to 4"),
    (MEAN, (ONE, 1, None, 1, np.array([[-1, 1]])), VALUE,
     "ranges[0] is -1 to 1, outside the table's columns 0 to 4"),
    (MEAN, (ONE, 1, None, 1, np.array([[3, 2]])), VALUE,
     "ranges[0] is 3 to 2, outside the table's columns 0 to 4"),
    (MEAN, (ONE, 1, None, 1, np.array([[0, 1], [1, 2], [2, 3]])[::2]), VALUE,
     "ranges must be contiguous"),
    (MEAN, (ONE, 1, None, 1, PAIRS, -1), VALUE, "threads must be between 0 and 1024, not -1"),
    (Z, (ONE, 1), VALUE, "row must be between 0 and 0, not 1"),
    (Z, (np.ones((0, 3)), 0), VALUE, "values must have at least one row"),
    (Z, (np.ones((3, 3)).T, 0), VALUE, f"values {UNFIT}"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "kind", "message"), BAD)
def test_bad_arguments_are_named(either: ModuleType, function: str, arguments: tuple, kind: type, message: str) -> None:
    assert outcome(getattr(either, function), *arguments) == (kind, message)
