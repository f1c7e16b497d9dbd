"""Runs the tests of the C++ code on a build of it that checks itself; called by `make test-sanitize`.

LD_PRELOAD=libasan.so python tests/sanitized.py build/address,undefined [pytest arguments]
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SUITES = (
    "selection/test_selection_core.py",
    "selection/test_core_arguments.py",
    "selection/test_z_scores.py",
    "selection/test_selection.py",
    "selection/test_selection_refusals.py",
    "selection/test_sweep.py",
    "kernels/test_native.py",
)
LIBRARIES = ("culnig_fast._selection", "culnig_kernels._cpu")


def main(folder: str, *arguments: str) -> int:
    """Put the checked builds in the place of the installed ones and run their tests."""
    import torch  # noqa: F401  # before the kernels, as in use

    for name in LIBRARIES:
        package, _, leaf = name.rpartition(".")
        (library,) = Path(folder).rglob(f"{package}/{leaf}*.so")
        spec = importlib.util.spec_from_file_location(name, library)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
        setattr(importlib.import_module(package), leaf, module)
        print(f"checked build: {library}", flush=True)
    suites = [str(HERE / name) for name in SUITES]
    # Tests in fresh processes would load the installed build; memory is the sanitizer's own. Capturing by file
    # descriptor would swallow a sanitizer's report.
    apart = "not fresh and not takes_little_memory"
    return int(pytest.main(["-q", "-p", "no:cacheprovider", "--capture=sys", "-k", apart, *suites, *arguments]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
