"""What a method of the table is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch

from harness.batches import Batch


class NotAvailable(Exception):
    """A method cannot run here; its text is the reason that the table shows."""


@dataclass(frozen=True)
class Session:
    """A method made ready on one model.

    Attributes:
        step: scores one batch and adds it to the totals; what is timed.
        totals: float64 [groups, neurons] so far, in flat order; None for a method that scores nothing.
    """

    step: Callable[[Batch], None]
    totals: Callable[[], torch.Tensor] | None


class Method(Protocol):
    """One row of the table.

    Attributes:
        name: as `--methods` knows it.
        summary: what it does, in one line.
        padding: `exclude` pads from the maximum, or `zero` when a pad counts as a score of 0.
        most_samples: samples a step can take; a larger batch is timed on this many and scaled. None: any.
        most_values: scores a step can take, of all samples and neurons, where Python handles each by itself. None: any.
        most_rounds: rounds worth timing, for a method that takes long; None: all.
        settles: whether its first step on a shape is unlike the later ones (it compiles, or keeps memory).
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    padding: ClassVar[Literal["exclude", "zero"]]
    most_samples: ClassVar[int | None]
    most_values: ClassVar[int | None]
    most_rounds: ClassVar[int | None]
    settles: ClassVar[bool]

    def open(self, model: Any, n_groups: int) -> contextlib.AbstractContextManager[Session]:
        """Make the model ready; on exit it is as it was. Raises NotAvailable where the method cannot run."""
        ...


class Plain:
    """Settings that most methods share."""

    padding: ClassVar[Literal["exclude", "zero"]] = "exclude"
    most_samples: ClassVar[int | None] = None
    most_values: ClassVar[int | None] = None
    most_rounds: ClassVar[int | None] = None
    settles: ClassVar[bool] = False
