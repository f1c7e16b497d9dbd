"""The C++ core and its NumPy twin against each other, bit for bit, and against definitions written out."""

from __future__ import annotations

import contextlib
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from culnig_fast.selection import numpy_core as twin
from culnig_fast.selection.core import implementation

INF = math.inf
TINY = 5e-324
SPECIAL = [0.0, -0.0, 1.0, -1.0, INF, -INF, TINY, -TINY, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1]
NUMBERS = st.one_of(st.sampled_from(SPECIAL), st.floats(allow_nan=False))
SCALES = [1.0, 1e-300, 1e300, 2.0**-1070]
FEW = st.sampled_from([0.0, -0.0, 1.0, TINY])

# Threads, and (block, runs, run, caution) that make small inputs take the ways of large ones: many blocks, a bar
# guessed from a sample, and with a caution below 0 one that is too high, so that a second reading is needed.
TUNINGS = [(1, None), (2, (1, 3, 1, 0.5)), (3, (3, 2, 2, 4.0)), (2, (2, 4, 1, -9.0))]


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
    assert implementation() == "C++"


def outcome(function: Any, *arguments: Any) -> tuple[Any, ...]:
    """Bits, or the error's type and text."""
    try:
        result = function(*arguments)
    except (TypeError, ValueError) as error:
        return type(error), str(error)
    # The sign of a NaN that an operation makes is the processor's choice.
    if isinstance(result, list):
        return tuple(part.tobytes() for job in result for part in job)
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
    for dtype in (np.float64, np.float32):
        with np.errstate(over="ignore"):
            narrow = array.astype(dtype)
        expected = outcome(twin.top_k, narrow, k)
        for threads, tuning in TUNINGS:
            assert outcome(core.top_k, narrow, k, threads, tuning) == expected


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
        expected = outcome(twin.top_k, values, k)
        for threads, tuning in ((0, None), (1, None), (3, (64, 100, 4, 4.0)), (2, (64, 100, 4, -20.0))):
            assert outcome(core.top_k, values, k, threads, tuning) == expected


def test_top_k_names_the_first_nan(either: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"^values\[2\] is NaN$"):
        either.top_k(np.array([1.0, -INF, np.nan, np.nan]), 0)


@st.composite
def sweeps(draw: st.DrawFn) -> tuple[Any, ...]:
    """Arguments of `candidates`: small tables of difficult numbers, and jobs on them."""
    columns = draw(st.integers(0, 40))
    dtype = draw(st.sampled_from([np.float64, np.float32]))
    cells = st.one_of(NUMBERS, FEW) if draw(st.booleans()) else FEW
    tables = []
    for _ in range(3):
        shape = (draw(st.integers(1, 11)), columns)
        flat = draw(st.lists(cells, min_size=1, max_size=60))
        with np.errstate(over="ignore"):
            tables.append(np.resize(np.array(flat), shape).astype(dtype))
    control, surface = (one if draw(st.booleans()) else None for one in tables[1:])
    jobs = []
    for _ in range(draw(st.integers(0, 3))):
        ends = sorted(draw(st.lists(st.integers(0, columns), min_size=0, max_size=6)))
        ranges = np.array(ends[: len(ends) // 2 * 2], dtype=np.int64).reshape(-1, 2)
        size = int((ranges[:, 1] - ranges[:, 0]).sum())
        rows = [
            np.array([] if t is None else draw(st.lists(st.integers(0, len(t) - 1), min_size=1)), dtype=np.int64)
            for t in (tables[0], control, surface)
        ]
        counts = [] if surface is None else sorted(draw(st.lists(st.integers(0, size), min_size=1, max_size=3)))
        jobs.append((ranges, *rows, draw(st.integers(0, size)), np.array(counts, dtype=np.int64)))
    samples = draw(st.integers(1, 2**53)), draw(st.integers(1, 7))
    return tables[0], samples[0], control, samples[1], surface, jobs


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


def sweep_with(**changes: Any) -> tuple[Any, ...]:
    """Arguments of `candidates` of which some are changed; those of its one job too."""
    whole = {"table": ONE, "samples": 1, "control": None, "control_samples": 1, "surface": None}
    parts = {"ranges": PAIRS, "rows": ROW, "control_rows": NO_ROWS, "surface_rows": NO_ROWS, "k": 1, "counts": NO_ROWS}
    parts.update({name: changes[name] for name in changes if name in parts})
    whole.update({name: changes[name] for name in changes if name in whole})
    return (*whole.values(), [tuple(parts.values())], changes.get("threads", 0))


ONE = np.ones((1, 4))
PAIRS, ROW, NO_ROWS = np.array([[0, 4]]), np.array([0]), np.zeros(0, np.int64)
TOP, SWEEP, Z, GROUP = "top_k", "candidates", "z_scores", "group_z"
TYPE, VALUE = TypeError, ValueError
UNFIT = "must be aligned and contiguous along its last dimension"
BAD = [
    (TOP, ([1.0], 1), TYPE, "values must be a NumPy array or a tensor on the CPU, not list"),
    (TOP, (np.ones(3, np.float16), 1), TYPE, "values must be float64 or float32, not float16"),
    (TOP, (np.ones(3, ">f8"), 1), TYPE, "values must be float64 or float32, not >f8"),
    (TOP, (ONE, 1), VALUE, "values must have 1 dimension(s), not 2"),
    (TOP, (np.ones(6)[::2], 1), VALUE, f"values {UNFIT}"),
    (TOP, (np.ones(3), 4), VALUE, "k must be between 0 and 3, not 4"),
    (TOP, (np.ones(3), -1), VALUE, "k must be between 0 and 3, not -1"),
    (TOP, (np.ones(3), 1.0), TYPE, "k must be a whole number, not float"),
    (TOP, (np.ones(3), 2**70), VALUE, f"k must be between 0 and 3, not {2**70}"),
    (TOP, (np.ones(3), 1, -1), VALUE, "threads must be between 0 and 1024, not -1"),
    (SWEEP, sweep_with(table=None), TYPE, "table must be a NumPy array or a tensor on the CPU, not NoneType"),
    (SWEEP, sweep_with(table=ONE[:0]), VALUE, "table must have at least one row"),
    (SWEEP, sweep_with(samples=0), VALUE, "samples must be between 1 and 2**53, not 0"),
    (SWEEP, sweep_with(samples=2.5), TYPE, "samples must be a whole number, not float"),
    (SWEEP, sweep_with(control=ONE, control_samples=-3), VALUE,
     "control_samples must be between 1 and 2**53, not -3"),
    (SWEEP, sweep_with(control=np.ones((2, 3))), VALUE, "control has 3 columns, but table has 4"),
    (SWEEP, sweep_with(control=ONE.astype(np.float32)), TYPE, "control is float32, but table is float64"),
    (SWEEP, sweep_with(surface=np.ones((0, 4))), VALUE, "surface must have at least one row"),
    (SWEEP, sweep_with(surface=np.ones((2, 8))[:, ::2]), VALUE, f"surface {UNFIT}"),
    (SWEEP, sweep_with(ranges=PAIRS.astype(float)), TYPE, "jobs[0].ranges must be int64, not float64"),
    (SWEEP, sweep_with(ranges=PAIRS[:, :1]), VALUE, "jobs[0].ranges must have shape [n, 2], not [n, 1]"),
    (SWEEP, sweep_with(ranges=np.array([[0, 1], [2, 5]])), VALUE,
     "jobs[0].ranges[1] is 2 to 5, outside the table's columns 0 to 4"),
    (SWEEP, sweep_with(ranges=np.array([[3, 2]])), VALUE,
     "jobs[0].ranges[0] is 3 to 2, outside the table's columns 0 to 4"),
    (SWEEP, sweep_with(ranges=np.array([[1, 3], [2, 4]])), VALUE,
     "jobs[0].ranges[1] is 2 to 4, but ranges must ascend and not overlap"),
    (SWEEP, sweep_with(ranges=np.array([[0, 1], [1, 2], [2, 3]])[::2]), VALUE, "jobs[0].ranges must be contiguous"),
    (SWEEP, sweep_with(rows=np.array([1])), VALUE, "jobs[0].rows holds 1, but rows are 0 to 0"),
    (SWEEP, sweep_with(rows=NO_ROWS), VALUE, "jobs[0].rows must name at least one row"),
    (SWEEP, sweep_with(control=ONE), VALUE, "jobs[0].control_rows must name at least one row"),
    (SWEEP, sweep_with(k=5), VALUE, "jobs[0].k must be between 0 and 4, not 5"),
    (SWEEP, sweep_with(surface=ONE, surface_rows=ROW), VALUE,
     "jobs[0].surface_counts must hold a count with a surface table, and none without"),
    (SWEEP, sweep_with(surface=ONE, surface_rows=ROW, counts=np.array([2, 1])), VALUE,
     "jobs[0].surface_counts must ascend between 0 and 4, but hold 1"),
    (SWEEP, sweep_with(threads=-1), VALUE, "threads must be between 0 and 1024, not -1"),
    (Z, (ONE, 1), VALUE, "row must be between 0 and 0, not 1"),
    (Z, (np.ones((0, 3)), 0), VALUE, "values must have at least one row"),
    (Z, (np.ones((3, 3)).T, 0), VALUE, f"values {UNFIT}"),
    (GROUP, (ONE, 1, None, 1, None, np.array([4]), ROW), VALUE, "columns holds 4, but columns are 0 to 3"),
    (GROUP, (ONE, 1, None, 1, None, ROW, np.array([1])), VALUE, "rows holds 1, but rows are 0 to 0"),
    (GROUP, (ONE, 1, None, 1, None, ROW, NO_ROWS), VALUE, "rows must name a row for each of the 1 columns, not 0"),
    (GROUP, (ONE, 1, ONE, 1, NO_ROWS, ROW, ROW), VALUE,
     "control_rows must name a row for each of the table's 1, not 0"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "arguments", "kind", "message"), BAD)
def test_bad_arguments_are_named(either: ModuleType, function: str, arguments: tuple, kind: type, message: str) -> None:
    assert outcome(getattr(either, function), *arguments) == (kind, message)


@pytest.mark.parametrize("values", [torch.ones(3, requires_grad=True), torch.ones(3, device="meta")])
def test_tensors_that_cannot_be_read_in_place_are_refused(either: ModuleType, values: torch.Tensor) -> None:
    with pytest.raises(TypeError, match=r"^values cannot be read in place \(.*a tensor on the CPU without gradients$"):
        either.top_k(values, 1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="GCC's report of vectorised loops needs g++")
@pytest.mark.parametrize("function", ["sum_rows", "difference", "quotient"])
def test_the_compiler_vectorises_what_reads_the_tables(function: str, tmp_path: Path) -> None:
    """With the flags of the build, every loop over columns in these functions, by the compiler's own report."""
    folder = Path(__file__).resolve().parents[2] / "csrc"
    unit = tmp_path / "unit.cpp"
    unit.write_text(
        '#include "selection.hpp"\n'
        "template std::vector<culnig::Candidates> culnig::candidates<double>("
        "const std::vector<culnig::Job<double>>&, std::size_t, unsigned, const culnig::Tuning&);\n"
    )
    flags = ["-std=c++17", "-O3", "-ffp-contract=off", "-fopt-info-vec-optimized", "-I", str(folder), "-c"]
    done = subprocess.run(
        ["g++", *flags, str(unit), "-o", str(tmp_path / "unit.o")], capture_output=True, text=True, check=True
    )
    vectorised = {int(line.split(":")[1]) for line in done.stderr.splitlines() if "ranking.hpp" in line}
    lines = (folder / "ranking.hpp").read_text().splitlines()
    # The last of several is the one that doubles take.
    start = max(i for i, line in enumerate(lines) if f"void {function}(" in line)
    end = next(i for i in range(start, len(lines)) if lines[i] == "}")
    loops = [i + 1 for i in range(start, end) if "for (std::size_t i = 0; i < count; ++i)" in lines[i]]
    assert loops
    assert set(loops) <= vectorised, f"{function}: loops at {loops}, vectorised {sorted(vectorised)}"
