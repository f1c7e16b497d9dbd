"""What the core takes and refuses, by the same words as its twin, and that its loops are compiled into vectors."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from core_samples import NO_ROWS, outcome


def sweep_with(**changes: Any) -> tuple[Any, ...]:
    """Arguments of `candidates` of which some are changed; those of its one job too."""
    whole = {"table": ONE, "samples": 1, "control": None, "control_samples": 1, "surface": None}
    parts = {"ranges": PAIRS, "rows": ROW, "control_rows": NO_ROWS, "surface_rows": NO_ROWS, "k": 1, "counts": NO_ROWS}
    parts.update({name: changes[name] for name in changes if name in parts})
    whole.update({name: changes[name] for name in changes if name in whole})
    return (*whole.values(), [tuple(parts.values())], changes.get("threads", 0))


ONE = np.ones((1, 4))
PAIRS, ROW = np.array([[0, 4]]), np.array([0])
TOP, SWEEP, Z, GROUP = "top_k", "candidates", "z_scores", "group_z"
TYPE, VALUE = TypeError, ValueError
UNFIT = "must be aligned and contiguous along its last dimension"
BAD = [
    (TOP, ([1.0], 1), TYPE, "values must be a NumPy array or a tensor on the CPU, not list"),
    (TOP, (np.ones(3, np.float16), 1), TYPE, "values must be float64 or float32, not float16"),
    (TOP, (np.ones(3, ">f8"), 1), TYPE, "values must be float64 or float32, not >f8"),
    (TOP, (np.ma.array(np.ones(3), mask=[0, 1, 0]), 1), TYPE,
     "values is a masked array, whose mask would not be seen; fill it, or leave the masked out"),
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
    (SWEEP, (ONE, 1, None, 1, None, None), TYPE, "jobs must be a list or a tuple, not NoneType"),
    (SWEEP, (ONE, 1, None, 1, None, iter([])), TYPE, "jobs must be a list or a tuple, not list_iterator"),
    (SWEEP, (ONE, 1, None, 1, None, [3]), TYPE, "jobs[0] must be a list or a tuple, not int"),
    (SWEEP, (ONE, 1, None, 1, None, [{1}]), TYPE, "jobs[0] must be a list or a tuple, not set"),
    (SWEEP, (ONE, 1, None, 1, None, [[1]]), VALUE, "jobs[0] must have 6 parts, not 1"),
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


class Interrupting:
    def __index__(self) -> int:
        raise KeyboardInterrupt


def test_an_interrupt_is_no_wrong_type(either: ModuleType) -> None:
    with pytest.raises(KeyboardInterrupt):
        either.top_k(np.ones(3), Interrupting())


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
