"""What selects: the C++ core, or its NumPy twin where that was not built."""

from __future__ import annotations

import functools
import importlib
import warnings
from types import ModuleType


@functools.cache
def core() -> ModuleType:
    """The C++ core, or its NumPy twin, with one warning, where the core was not built."""
    try:
        return importlib.import_module("culnig_fast._selection")
    except ImportError as error:
        warnings.warn(
            f"culnig_fast was installed without its C++ core ({error}); its slower NumPy twin selects, "
            "with the same results. Install again with a C++17 compiler to have the core",
            RuntimeWarning,
            stacklevel=2,
        )
        return importlib.import_module("culnig_fast.selection.numpy_core")


def implementation() -> str:
    """What selects: "C++", or "NumPy" where the extension was not built."""
    return "C++" if core().__name__ == "culnig_fast._selection" else "NumPy"
