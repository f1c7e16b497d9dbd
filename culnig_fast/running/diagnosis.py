"""Which sample, layer and neuron brought NaN or infinity into a run: found after the fact, one sample at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from culnig_fast.architecture import Architecture, SiteLocation
from culnig_fast.attributor import Attributor
from culnig_fast.batching import make_batch
from culnig_fast.divided import Division
from culnig_fast.errors import CulnigError
from culnig_fast.mixtures.experts import Routing
from culnig_fast.neurons import NeuronLayout
from culnig_fast.running.sightings import Sightings

REMEDY = "the model's weights may hold NaN, or its dtype overflows: try bfloat16 or float32"
"""What a message about such numbers ends in."""


class NonFinite(Exception):
    """Some of these samples gave NaN or infinity."""

    def __init__(self, suspects: np.ndarray) -> None:
        super().__init__(f"{len(suspects)} samples")
        self.suspects = suspects


def describe_non_finite(
    architecture: Architecture,
    token_ids: Sequence[Sequence[int]],
    answers: torch.Tensor,
    ids: Sequence[str],
    suspects: Iterable[int],
    options: dict[str, Any],
) -> str:
    """One sentence that names the first sample, in the order given, that is not finite by itself, and where.

    Args:
        architecture: the model.
        token_ids, answers, ids: of all samples.
        suspects: those among which it is.
        options: of the run's `Attributor`.
    """
    suspects = sorted(int(i) for i in suspects)
    on_taps = _Watcher(architecture, **{**options, "path": "taps", "n_groups": 1})
    for i, log_p in _one_by_one(on_taps, token_ids, answers, suspects):
        if where := _first_of_all(on_taps.sightings.first(0, float(log_p)), architecture.division):
            return f"question {ids[i]!r}: {where}; {REMEDY}"
    # Nothing on taps: the run's own path is what overflows.
    alone = Attributor(architecture, **{**options, "n_groups": 1})
    zeros = torch.zeros((1, alone.layout.size), dtype=torch.float64)
    for i, log_p in _one_by_one(alone, token_ids, answers, suspects):
        totals = alone.totals.cpu().numpy()
        alone.restore(zeros)
        if not np.isfinite(totals).all():
            return f"question {ids[i]!r}: {_first_neuron(totals[0], alone.layout)}; {REMEDY}"
        if not torch.isfinite(log_p).all():
            return f"question {ids[i]!r}: its log P is {float(log_p)}; {REMEDY}"
    return f"questions {ids[suspects[0]]!r} to {ids[suspects[-1]]!r}: scores are not finite in their batch; {REMEDY}"


def check_finite(totals: np.ndarray, layout: NeuronLayout) -> None:
    """Raise CulnigError, naming the first neuron, when a total is NaN or infinite."""
    for row in totals:
        if not np.isfinite(row).all():
            raise CulnigError(f"{_first_neuron(row, layout)}; {REMEDY}")


def _first_of_all(found: tuple[int, str] | None, division: Division | None) -> str:
    """What went wrong first, in whichever process; empty when nothing did."""
    everywhere = [found] if division is None else division.gather(found)
    places: list[tuple[int, str]] = [(place, text) for place, text in filter(None, everywhere)]
    return min(places, default=(0, ""))[1]


def _first_neuron(row: np.ndarray, layout: NeuronLayout) -> str:
    bad = np.flatnonzero(~np.isfinite(row))
    names, layers, columns = layout.locate(bad[:1])
    return f"the score of neuron {columns[0]} of {names[0]} in layer {layers[0]} is {row[bad[0]]} ({bad.size} such)"


def _one_by_one(
    attributor: Attributor, token_ids: Sequence[Sequence[int]], answers: torch.Tensor, suspects: Sequence[int]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Run each sample by itself; yields its index and log P [1]."""
    device = attributor.architecture.embedding.weight.device
    with attributor:
        for i in suspects:
            batch = make_batch(token_ids, np.array([i]), device)
            logits = attributor.forward(batch.input_ids, batch.lengths)
            log_p = torch.log_softmax(logits, dim=-1)[:, answers[i]]
            attributor.backward(log_p)
            yield i, log_p.detach()


class _Watcher(Attributor):
    """Scores nothing; notes what is not finite as it passes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sightings = Sightings(self.layout)

    def _on_tap(
        self, location: SiteLocation, act: torch.Tensor, grad: torch.Tensor, routing: Routing | None = None
    ) -> None:
        self.sightings.look(location, act, grad, routing)
