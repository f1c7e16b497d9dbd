"""What large runs meet, done to real runs on purpose: one part a file, each found by looking.

A part has `TITLE`, one line, and `run(folder, quick, say)`, which returns JSON-ready figures: `passed`, and whatever
it measured. `folder` is empty and the part's own; `say` takes a line for the reader.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any


def parts() -> dict[str, Any]:
    """Every part's module by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}
