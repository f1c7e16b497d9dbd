"""Which way layers run, fused or on taps: as asked for, and as the rest of what is asked allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from culnig_fast.errors import CulnigError
from culnig_fast.positions import FUSED_REDUCTIONS

PATHS = ("auto", "fused", "taps")


class PathChoice:
    """The path that was asked for.

    Args:
        path: of `PATHS`.
        reduction, padding: of the scores.
        divided: whether the weights are divided among processes.

    Attributes:
        masked: whether a mask of positions was given, which fused layers do not know.

    Raises:
        CulnigError: an unknown path, or `fused` where no layer can be, whatever the model.
    """

    def __init__(self, path: str, reduction: str, padding: str, divided: bool) -> None:
        if path not in PATHS:
            raise CulnigError(f"unknown path {path!r}; choose from {', '.join(PATHS)}")
        self.path, self.reduction, self.padding, self.divided = path, reduction, padding, divided
        self.masked = False
        if path == "fused" and (reason := self.why_taps()) is not None:
            raise CulnigError(f"path='fused' cannot be had: {reason}; use path='auto' or 'taps'")

    def why_taps(self) -> str | None:
        """Why no layer may run fused, whatever the model; None when that is left to the model."""
        if self.path == "taps":
            return "asked for"
        if self.reduction not in FUSED_REDUCTIONS:
            return f"reduction {self.reduction!r} is scored on taps"
        if self.divided:
            return "the weights are divided among processes"
        return "a position mask was given" if self.masked else None

    def mask(self) -> None:
        """From now on batches come with a mask; CulnigError where that cannot be."""
        if self.padding == "zero":
            raise CulnigError("padding='zero' counts pads, and positions leave some out; use padding='exclude'")
        if self.path == "fused":
            raise CulnigError("path='fused' knows no position mask; use path='auto' or 'taps'")
        self.masked = True

    def check(self, model: Any, any_fused: bool, reasons: Mapping[int, str]) -> None:
        """Raise CulnigError when `fused` was asked for and no layer of the model is."""
        if self.path == "fused" and not any_fused:
            raise CulnigError(
                f"no layer of {type(model).__name__} can be fused ({reasons[0]}); use path='auto' or 'taps'"
            )
