"""What large runs meet, done to real runs on purpose: one part a file, each found by looking.

A part, beside modules that parts share, has `TITLE`, one line, and `run(folder, quick, say)`, which returns JSON-ready
figures: `passed`, and whatever it measured. `folder` is empty and the part's own; `say` takes a line for the reader.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any


def parts() -> dict[str, Any]:
    """Every part's module by name."""
    modules = {
        found.name: importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)
    }
    return {name: module for name, module in sorted(modules.items()) if hasattr(module, "TITLE")}
