"""The C++ core, and each of it and its NumPy twin, for the tests of both."""

from __future__ import annotations

from types import ModuleType

import pytest

from culnig_fast.selection import numpy_core as twin


@pytest.fixture(scope="module")
def core() -> ModuleType:
    return pytest.importorskip("culnig_fast._selection", reason="installed without a compiler")


@pytest.fixture(params=["C++", "NumPy"])
def either(request: pytest.FixtureRequest) -> ModuleType:
    if request.param == "NumPy":
        return twin
    return pytest.importorskip("culnig_fast._selection", reason="installed without a compiler")
