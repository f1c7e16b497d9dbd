"""Interrupted scoring continues where it stopped: totals and cursor in a file beside the output."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.tensors import map_tensor, read_facts, read_metadata, save_tensors

FORMAT = "culnig_fast.checkpoint/1"


@dataclass(frozen=True)
class Progress:
    """What is done so far.

    Attributes:
        batches: how many batches, in the order of the plan.
        totals: float64 [groups, neurons].
        probability: float64 [samples], P of the samples of those batches, in batch order.
    """

    batches: int
    totals: np.ndarray
    probability: np.ndarray


class Checkpoint:
    """A file that is rewritten, whole, every so many seconds, and removed when the work is done.

    Args:
        path: where.
        run: JSON-ready facts that make two runs the same run; each is compared by name before work continues.
        seconds: least time between two writes.
    """

    def __init__(self, path: str | Path, run: Mapping[str, Any], seconds: float = 60.0) -> None:
        self.path = Path(path)
        self._run = {name: _digest(value) for name, value in run.items()}
        self._seconds = seconds
        self._written = time.monotonic()

    def load(self) -> Progress | None:
        """Earlier progress of the same run; None when there is none.

        Raises:
            CulnigError: the file is damaged, or of a run that differs; names what differs and the remedy.
        """
        if not self.path.exists():
            return None
        try:
            header = read_metadata(self.path)
            # Copies: the file is about to be replaced under the maps.
            totals, probability = (
                np.array(map_tensor(self.path, name, np.float64)) for name in ("totals", "probability")
            )
            run, batches = read_facts(header, "run"), int(header["batches"])
        except (OSError, KeyError, ValueError) as error:
            raise CulnigError(f"{self.path} is a damaged checkpoint ({error}); delete it to start afresh") from error
        different = sorted(name for name in {*run, *self._run} if run.get(name) != self._run.get(name))
        if different or header.get("format") != FORMAT:
            raise CulnigError(
                f"{self.path} is the checkpoint of another run (different: {', '.join(different) or 'format'}); "
                "finish that run, delete the file, or write to another output"
            )
        return Progress(batches, totals, probability)

    def due(self) -> bool:
        """Whether enough time has passed since the last write."""
        return time.monotonic() - self._written >= self._seconds

    def save(self, progress: Progress) -> None:
        """Write progress, atomically."""
        tensors = {"totals": progress.totals, "probability": progress.probability}
        header = {"format": FORMAT, "run": json.dumps(self._run), "batches": str(progress.batches)}
        save_tensors(self.path, tensors, header, overwrite=True)
        self._written = time.monotonic()

    def remove(self) -> None:
        """Delete the file: the work is done."""
        self.path.unlink(missing_ok=True)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
