"""The C++ core and its NumPy twin against each other, bit for bit, and against definitions written out."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from core_samples import FEW, INF, NO_ROWS, NUMBERS, SPECIAL, outcome, sweeps
from hypothesis import example, given, settings
from hypothesis import strategies as st

from culnig_fast.selection import numpy_core as twin
from culnig_fast.selection.core import implementation

# Threads, and (block, runs, run, caution) that make small inputs take the ways of large ones: many blocks, a bar
# guessed from a sample, and with a caution below 0 one that is too high, so that a second reading is needed.
TUNINGS = [(1, None), (2, (1, 3, 1, 0.5)), (3, (3, 2, 2, 4.0)), (2, (2, 4, 1, -9.0))]


@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")
def test_core_is_in_use_where_there_is_a_compiler() -> None:
    assert implementation() == "C++"


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
    for dtype in (np.float64, np.float32):
        with np.errstate(over="ignore"):
            narrow = array.astype(dtype)
        expected = outcome(twin.top_k, narrow, k)
        for threads, tuning in TUNINGS:
            assert outcome(core.top_k, narrow, k, threads, tuning) == expected


def far_apart(rng: np.random.Generator, n: int) -> np.ndarray:
    """Any bits that are no NaN, and often zeros of both signs, infinities and the like."""
    values = rng.integers(0, 2**64, n, dtype=np.uint64).view(np.float64)
    special = rng.choice(SPECIAL, n)
    return np.where(np.isnan(values) | (rng.random(n) < 0.3), special, values)


@pytest.mark.parametrize("n", [1, 2, 1023, 40_001])
@pytest.mark.parametrize("shape", ["random", "ascending", "descending", "equal", "coarse", "special"])
def test_top_k_of_long_arrays(core: ModuleType, shape: str, n: int) -> None:
    rng = np.random.default_rng(n)
    values = {
        "random": rng.standard_normal(n),
        "ascending": np.arange(n, dtype=float),
        "descending": -np.arange(n, dtype=float),
        "equal": np.full(n, 0.3),
        "coarse": rng.integers(-3, 3, n) * 0.5,
        "special": far_apart(rng, n),
    }[shape]
    for k in {0, 1, n // 100, n // 2, n - 1, n}:
        expected = outcome(twin.top_k, values, k)
        for threads, tuning in ((0, None), (1, None), (3, (64, 100, 4, 4.0)), (2, (64, 100, 4, -20.0))):
            assert outcome(core.top_k, values, k, threads, tuning) == expected


def test_top_k_names_the_first_nan(either: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"^values\[2\] is NaN$"):
        either.top_k(np.array([1.0, -INF, np.nan, np.nan]), 0)


def added_up(values: np.ndarray) -> float:
    """In order, one rounding each; Python's sum compensates roundings since 3.12."""
    total, *others = values.tolist()
    for value in others:
        total += value
    return total


@settings(max_examples=400, deadline=None)
@given(sweeps())
def test_core_and_twin_have_the_same_candidates(core: ModuleType, arguments: tuple[Any, ...]) -> None:
    expected = outcome(twin.candidates, *arguments)
    for threads, tuning in TUNINGS:
        assert outcome(core.candidates, *arguments, threads, tuning) == expected


@settings(max_examples=200, deadline=None)
@given(sweeps())
def test_candidates_are_their_definition(arguments: tuple[Any, ...]) -> None:
    table, samples, control, control_samples, surface, jobs = arguments
    with contextlib.suppress(ValueError):
        for job, (best, scores, classes) in zip(jobs, twin.candidates(*arguments), strict=True):
            ranges, rows, control_rows, surface_rows, k, counts = job
            pool = [column for start, stop in ranges.tolist() for column in range(start, stop)]
            d, sums = {}, {}
            for column in pool:
                d[column] = added_up(table[rows, column]) / samples
                if control is not None:
                    d[column] -= added_up(control[control_rows, column]) / control_samples
                if surface is not None:
                    sums[column] = added_up(surface[surface_rows, column])
            # Python's sort is stable.
            assert best.tolist() == sorted(pool, key=lambda column: -d[column])[:k]
            assert scores.tolist() == [d[column] for column in best.tolist()]
            order = sorted(sums, key=lambda column: -sums[column])
            for column, found in zip(best.tolist(), classes.tolist(), strict=True):
                assert found == sum(column not in order[:count] for count in counts.tolist())


def job(n: int, rows: int, k: int, counts: list[int]) -> tuple[Any, ...]:
    every = np.arange(rows)
    return np.array([[0, 5], [5, n - 9], [n - 3, n]]), every, every[:1], every[1:], k, np.array(counts)


@pytest.mark.parametrize("shape", ["random", "ascending", "descending", "equal", "steps"])
def test_a_long_sweep_with_the_bar_that_is_used(core: ModuleType, shape: str) -> None:
    n = 4 * 2048 * 16 + 4097
    rng = np.random.default_rng(3)
    values = {
        "random": rng.standard_normal((4, n)),
        "ascending": np.tile(np.arange(n, dtype=float), (4, 1)),
        "descending": np.tile(-np.arange(n, dtype=float), (4, 1)),
        "equal": np.ones((4, n)),
        "steps": np.tile(np.floor(np.arange(n) / 5000), (4, 1)),
    }[shape]
    arguments = (values, 17, values[::-1] / 3, 19, values, [job(n, 4, 700, [0, 50, 9000]), job(n, 2, n // 2, [n // 8])])
    expected = outcome(twin.candidates, *arguments)
    for threads in (0, 1, 2, 16):
        assert outcome(core.candidates, *arguments, threads) == expected


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_long_rankings_of_values_far_apart(core: ModuleType, dtype: type) -> None:
    """Zeros keep their sign in the scores, though none goes before the other."""
    n = 30_000
    with np.errstate(over="ignore"):
        values = far_apart(np.random.default_rng(5), 2 * n).reshape(2, n).astype(dtype)
    row = np.array([1])
    for k in (4095, 4096, 4097, n):
        one = (np.array([[0, n]]), row, NO_ROWS, row[:0], k, NO_ROWS)
        expected = outcome(twin.candidates, values, 1, None, 1, None, [one])
        assert outcome(core.candidates, values, 1, None, 1, None, [one]) == expected


@pytest.mark.parametrize("divisors", [(3, 7), (49, 41), (1, 2**53 - 1)])
def test_differences_that_roundings_alone_tell_apart(core: ModuleType, divisors: tuple[int, int]) -> None:
    """Quotients a few last bits apart: a multiplication by the reciprocal has others than the division."""
    n = 4 * 2048 * 16 + 100
    steps = np.random.default_rng(2).integers(-9, 9, (2, n)) * 2.0**-52
    tables = [(1 + steps[i : i + 1]) * divisors[i] for i in (0, 1)]
    one, row = np.array([[0, n]]), np.array([0])
    for k in (40, 700, n // 9):
        jobs = [(one, row, row, NO_ROWS, k, NO_ROWS)]
        expected = outcome(twin.candidates, tables[0], divisors[0], tables[1], divisors[1], None, jobs)
        assert outcome(core.candidates, tables[0], divisors[0], tables[1], divisors[1], None, jobs, 1) == expected


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_first_nan_is_named_whoever_finds_it(either: ModuleType, threads: int) -> None:
    n = 100_000
    table, surface = np.zeros((3, n)), np.zeros((3, n))
    jobs = [job(n, 3, 5, [5]), job(n, 1, 5, [5])]
    surface[2, 11] = np.nan
    table[0, [77_777, 88_888, n - 7]] = np.nan, np.nan, np.nan
    for of, column in (("difference", 77_777), ("surface", 11)):
        with pytest.raises(ValueError, match=f"^the {of} of jobs.0. is NaN at column {column}$") as error:
            either.candidates(table, 1, None, 1, surface, [(*jobs[0][:2], NO_ROWS, *jobs[0][3:])], threads)
        assert (error.value.job, error.value.of, error.value.column) == (0, of, column)
        table[:] = 0.0
    table[:, n - 7] = np.nan  # between the ranges
    surface[2, 11] = 0.0
    assert len(either.candidates(table, 1, None, 1, surface, [(*jobs[0][:2], NO_ROWS, *jobs[0][3:])], threads)) == 1


def test_infinite_minus_infinite_is_a_nan(either: ModuleType) -> None:
    table = np.array([[1.0, INF, -INF]])
    one = (np.array([[0, 3]]), np.array([0]), np.array([0]), NO_ROWS, 1, NO_ROWS)
    with pytest.raises(ValueError, match="difference of jobs.0. is NaN at column 1"):
        either.candidates(table, 1, table, 1, None, [one])


def test_tables_are_read_in_place(either: ModuleType, tmp_path: Path) -> None:
    """Memory-mapped, read-only, a tensor's memory, and rows apart from one another."""
    path = tmp_path / "table"
    np.arange(15.0).tofile(path)
    one = (np.array([[1, 4]]), np.arange(3), NO_ROWS, NO_ROWS, 3, NO_ROWS)
    mapped = np.memmap(path, np.float64, mode="r", shape=(3, 5))
    tensor = torch.from_numpy(np.array(mapped))
    assert np.from_dlpack(tensor).ctypes.data == tensor.data_ptr()
    apart = np.repeat(mapped, 2, axis=0)[::2]
    assert apart.strides[0] == 80
    for table in (mapped, tensor, apart, np.array(mapped, np.float32), tensor.float()):
        columns, scores, classes = either.candidates(table, 3, None, 1, None, [one])[0]
        assert (columns.tolist(), scores.tolist(), classes.tolist()) == ([3, 2, 1], [8.0, 7.0, 6.0], [0, 0, 0])
        assert columns.flags.writeable


def test_the_core_takes_little_memory(core: ModuleType) -> None:
    """At most 5 % of the tables: the process's peak before and after."""
    code = (
        "import resource, numpy as np\n"
        "from culnig_fast import _selection\n"
        "tables = [np.ones((rows, 400_000)) for rows in (16, 16, 8)]\n"
        "for table in tables: table[:] = np.random.default_rng(0).standard_normal(400_000)\n"
        "full, one = np.array([[0, 400_000]]), np.arange(16)\n"
        "jobs = [(full, one[g:g+1], one[g:g+1], one[g:g+1], 1200, np.array([4000])) for g in range(8)]\n"
        "jobs.append((full, one, one, one[:8], 4000, np.array([4000])))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "_selection.candidates(tables[0], 3, tables[1], 2, tables[2], jobs, 2)\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print((after - before) * 1024 / sum(table.nbytes for table in tables))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.05


def test_a_large_choice_takes_little_memory_on_many_threads(core: ModuleType) -> None:
    """A few times that of its entries, 16 bytes each, not twice that on each thread."""
    code = (
        "import resource, numpy as np\n"
        "from culnig_fast import _selection\n"
        "values = np.random.default_rng(0).standard_normal(1_600_000)\n"
        "_selection.top_k(values, 1, 32)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "_selection.top_k(values, 400_000, 32)\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print((after - before) * 1024 / (400_000 * 16))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 6
