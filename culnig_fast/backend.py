"""The one place that decides which implementation of the numeric operations runs."""

from __future__ import annotations

from types import ModuleType

import culnig_kernels.reference

from culnig_fast.errors import CulnigError

BACKENDS = ("auto", "reference")


def resolve(backend: str) -> ModuleType:
    """The module that holds `actgrad_reduce` and `accumulate` for the named backend.

    Args:
        backend: `auto` (the fastest there is for the device) or `reference` (plain torch).

    Raises:
        CulnigError: an unknown name.
    """
    if backend not in BACKENDS:
        raise CulnigError(f"unknown backend {backend!r}; choose from {', '.join(BACKENDS)}")
    return culnig_kernels.reference
