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
from culnig_fast.files import check_writable, remove_leftovers
from culnig_fast.tensors import map_tensor, read_facts, read_metadata, save_tensors

FORMAT = "culnig_fast.checkpoint/3"

_SHOWN = 60
"""Facts of at most so many characters are kept as they are, so that a difference can be told; longer ones as a hash."""


@dataclass(frozen=True)
class Progress:
    """What is done so far.

    Attributes:
        totals: float64 [groups, neurons].
        probability: float64 [samples done], in the order in which the run takes its samples.
        tokens: the budget that batches are planned with; None for batches of a fixed number of samples.
        limit: what is run at once since memory ran out; None when it never did.
        halvings: how often it did.
    """

    totals: np.ndarray
    probability: np.ndarray
    tokens: int | None = None
    limit: int | None = None
    halvings: int = 0


class Checkpoint:
    """A file that is rewritten, whole, every so many seconds, and removed when the work's result is on disk.

    Args:
        path: where.
        run: JSON-ready facts that make two runs the same run; each is compared by name before work continues.
        seconds: least time between two writes.

    Raises:
        CulnigError: nothing can be written there: known before the work begins and not after it.
    """

    def __init__(self, path: str | Path, run: Mapping[str, Any], seconds: float = 60.0) -> None:
        self.path = Path(path)
        self._run = _facts(run)
        self._seconds = seconds
        self._written = time.monotonic()
        self._saved = 0
        check_writable(self.path)

    def load(self) -> Progress | None:
        """Earlier progress of the same run; None when there is none.

        Raises:
            CulnigError: the file is damaged, or of a run that differs; names what differs and the remedy.
        """
        remove_leftovers(self.path, older_than=60.0)
        if not self.path.exists():
            return None
        try:
            header = read_metadata(self.path)
            if header.get("format") != FORMAT:
                raise self._of_another_version(header.get("format"))
            run, state = read_facts(header, "run"), read_facts(header, "state")
            if different := _differences(run, self._run):
                raise self._another(different)
            # Copies: the file is about to be replaced under the maps.
            totals, probability = (
                np.array(map_tensor(self.path, name, np.float64)) for name in ("totals", "probability")
            )
            self._saved = len(probability)
            return Progress(totals, probability, state["tokens"], state["limit"], int(state["halvings"]))
        except _AnotherRun:
            raise
        except (OSError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise CulnigError(f"{self.path} is a damaged checkpoint ({error}); delete it to start afresh") from error

    def due(self) -> bool:
        """Whether enough time has passed since the last write."""
        return time.monotonic() - self._written >= self._seconds

    def save(self, progress: Progress) -> None:
        """Write progress, atomically.

        Raises:
            CulnigError: it cannot be written; what was written before stays as it is, and the message says so.
        """
        tensors = {"totals": progress.totals, "probability": progress.probability}
        state = {"tokens": progress.tokens, "limit": progress.limit, "halvings": progress.halvings}
        header = {"format": FORMAT, "run": json.dumps(self._run), "state": json.dumps(state)}
        try:
            save_tensors(self.path, tensors, header, overwrite=True)
        except CulnigError as error:
            kept = f"progress of {self._saved:,} samples is kept there" if self._saved else "no progress was kept yet"
            raise CulnigError(f"{error} ({kept}; the same call continues from it)") from error
        self._written = time.monotonic()
        self._saved = len(progress.probability)

    def _of_another_version(self, found: Any) -> CulnigError:
        return _AnotherRun(
            f"{self.path} is not a checkpoint of this version of culnig_fast (format {found}, not {FORMAT}); finish "
            "that run with the version that began it, or delete the file to start afresh"
        )

    def _another(self, different: str) -> CulnigError:
        return _AnotherRun(
            f"{self.path} is the checkpoint of another run (different: {different}); "
            "finish that run, delete the file, or write to another output"
        )


class _AnotherRun(CulnigError):
    """Not a damaged file."""


def _facts(run: Mapping[str, Any]) -> dict[str, Any]:
    """Each fact as it is where it is short, as a hash where it is long; those of a mapping one by one."""
    return {
        name: {key: _short(inner) for key, inner in value.items()} if isinstance(value, Mapping) else _short(value)
        for name, value in run.items()
    }


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else "#" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _differences(there: Any, here: Any) -> str:
    """Names of the facts that differ, with both values where they are short; empty when none does."""
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return "run"
    found = []
    for name in sorted({*there, *here}):
        ours, theirs = here.get(name), there.get(name)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            inner = [_difference(key, theirs.get(key), ours.get(key)) for key in sorted({*ours, *theirs})]
            inner = [text for text in inner if text]
            found += [f"{name}: {', '.join(inner)}"] if inner else []
        elif text := _difference(name, theirs, ours):
            found.append(text)
    return "; ".join(found)


def _difference(name: str, theirs: Any, ours: Any) -> str:
    if theirs == ours:
        return ""
    if any(value is None or str(value).startswith("#") for value in (theirs, ours)):
        return name
    return f"{name} {theirs} there and {ours} here"
