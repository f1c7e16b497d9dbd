"""That the sums over a row were compiled into vectors, by the built library's machine code."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
from collections import defaultdict
from functools import cache

import pytest

if importlib.util.find_spec("culnig_kernels._cpu") is None:
    pytest.skip("the compiled CPU kernels were not built", allow_module_level=True)
if shutil.which("objdump") is None:
    pytest.skip("reading machine code needs objdump, of binutils", allow_module_level=True)

LIBRARY = importlib.import_module("culnig_kernels._cpu")
FUNCTIONS = ("norm_rows", "norm_backward_rows", "rotary_rows", "rotary_backward_columns")


@cache
def additions() -> dict[tuple[str, str, str], list[str]]:
    """Additions of four or eight doubles at once by level, function and element type."""
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", LIBRARY.__file__]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    here = nowhere = ("", "", "")
    for line in text.splitlines():
        if line.endswith(">:"):
            # What was not inlined carries the function's name among its template arguments.
            name = re.search(r"cpu::(\w+)::(\w+_(?:rows|columns))<(?:[\w:]*::)?(float|Bf16)\b", line)
            here = (name[1], name[2], name[3]) if name else nowhere
            found[here] += []
        elif "vaddpd" in line and re.search("%[yz]mm", line):
            found[here].append(line)
    return dict(found)


@pytest.mark.parametrize("level", LIBRARY.levels()[1:])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_sums_of_doubles_are_packed(function: str, level: str) -> None:
    if len(additions()) == 1:
        pytest.skip("the library was stripped of its names")
    for element in ("float", "Bf16"):
        assert additions()[level, function, element], f"{function} of {element} adds doubles one by one"
