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
from culnig_fast.neurons import NeuronLayout, NeuronSite

_REMEDY = "the model's weights may hold NaN, or its dtype overflows: try bfloat16 or float32"


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
        if where := _first_of_all(on_taps.first(log_p), architecture.division):
            return f"question {ids[i]!r}: {where}; {_REMEDY}"
    # Nothing on taps: the run's own path is what overflows.
    alone = Attributor(architecture, **{**options, "n_groups": 1})
    zeros = torch.zeros((1, alone.layout.size), dtype=torch.float64)
    for i, log_p in _one_by_one(alone, token_ids, answers, suspects):
        totals = alone.totals.cpu().numpy()
        alone.restore(zeros)
        if not np.isfinite(totals).all():
            return f"question {ids[i]!r}: {_first_neuron(totals[0], alone.layout)}; {_REMEDY}"
        if not torch.isfinite(log_p).all():
            return f"question {ids[i]!r}: its log P is {float(log_p)}; {_REMEDY}"
    return f"questions {ids[suspects[0]]!r} to {ids[suspects[-1]]!r}: scores are not finite in their batch; {_REMEDY}"


def check_finite(totals: np.ndarray, layout: NeuronLayout) -> None:
    """Raise CulnigError, naming the first neuron, when a total is NaN or infinite."""
    for row in totals:
        if not np.isfinite(row).all():
            raise CulnigError(f"{_first_neuron(row, layout)}; {_REMEDY}")


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
    """Scores nothing; keeps the first element that is not finite of every activation and gradient that passes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._found: dict[tuple[str, NeuronSite], tuple[int, float]] = {}

    def first(self, log_p: torch.Tensor) -> tuple[int, str] | None:
        """Where the last sample went wrong first, as its place in the order of computation and in words."""
        found, self._found = self._found, {}
        order = list(self.layout.sites)
        steps = [("activation", site) for site in order] + [("logits", None)] + [("gradient", s) for s in order[::-1]]
        for place, (what, site) in enumerate(steps):
            if site is None:
                if not torch.isfinite(log_p).all():
                    return place, f"its logits give log P = {float(log_p)}, after activations that are finite"
            elif (what, site) in found:
                column, value = found[what, site]
                module = f"{site.module_name} in layer {site.layer_idx}"
                return place, f"the {what} of neuron {column} of {module} is {value}"
        return None

    def _on_tap(
        self, location: SiteLocation, act: torch.Tensor, grad: torch.Tensor, routing: Routing | None = None
    ) -> None:
        for what, tensor in (("activation", act), ("gradient", grad)):
            rows = tensor.detach().reshape(-1, tensor.shape[-1])
            bad = (~torch.isfinite(rows)).nonzero()
            if len(bad):
                row, column = bad[0].tolist()
                expert = 0 if routing is None else int(routing.experts[row])
                first = 0 if location.held is None else location.held.start
                place = first + expert * tensor.shape[-1] + column
                self._found[what, location.site] = place, float(rows[row, column])
