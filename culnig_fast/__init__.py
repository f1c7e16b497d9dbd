"""Which neurons of a large language model contribute to the right answer, at the cost of little more than one pass.

Names are loaded when first used, so that importing the package loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

from culnig_fast.version import __version__

_HOMES = {
    "Architecture": "architecture",
    "Attributor": "attributor",
    "CulnigError": "errors",
    "DeviceTable": "selection_device",
    "Evaluation": "evaluation",
    "NeuronLayout": "neurons",
    "NeuronSet": "neurons",
    "NeuronSite": "neurons",
    "Question": "questions",
    "ScoreTable": "scores",
    "attribute": "attribution",
    "bake": "masking",
    "discover": "architecture",
    "enhance": "masking",
    "evaluate": "evaluation",
    "paired_bootstrap": "statistics",
    "scaled": "masking",
    "select_general": "selection",
    "select_random": "selection",
    "select_specific": "selection",
    "select_specific_all": "selection",
    "sweep_general": "sweep",
    "sweep_specific": "sweep",
    "suppress": "masking",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 — the keys are names


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
