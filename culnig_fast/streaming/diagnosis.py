"""Which question, layer and neuron brought NaN or infinity into a streamed run, in one more pass through the block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from culnig_fast.architecture import SiteLocation
from culnig_fast.batching import Batch
from culnig_fast.mixtures.experts import Routing
from culnig_fast.running.diagnosis import REMEDY, NonFinite
from culnig_fast.running.samples import Samples
from culnig_fast.running.sightings import Sightings
from culnig_fast.streaming.attributor import Objective, StreamedAttributor
from culnig_fast.streaming.model import StreamedModel


def describe_streamed(streamed: StreamedModel, samples: Samples, error: NonFinite, options: dict[str, Any]) -> str:
    """One sentence that names the first of the suspects, in the order given, that is not finite by itself, and where.

    Args:
        streamed: the model.
        samples: all of them.
        error: the suspects, one block's.
        options: of the run's attributor.
    """
    suspects = sorted(int(i) for i in error.suspects)
    watcher = _StreamedWatcher(streamed, **{**options, "path": "taps", "n_groups": 1})
    log_p = watcher.watch(samples, suspects)
    for i in suspects:
        if where := watcher.sightings.first(i, log_p[i]):
            return f"question {samples.ids[i]!r}: {where[1]}; {REMEDY}"
    return f"questions {samples.ids[suspects[0]]!r} to {samples.ids[suspects[-1]]!r}: scores are not finite; {REMEDY}"


class _StreamedWatcher(StreamedAttributor):
    """Scores nothing; notes what is not finite as it passes, sample by sample."""

    def __init__(self, streamed: StreamedModel, **options: Any) -> None:
        super().__init__(streamed, **options)
        self.sightings = Sightings(self.layout)

    def watch(self, samples: Samples, suspects: Sequence[int]) -> dict[int, float]:
        """Run samples as a block of batches of one; log P of each."""
        batches = [samples.batch(np.array([i]), self.streamed.device) for i in suspects]
        seen: dict[int, float] = {}

        def log_probability(number: int, logits: torch.Tensor) -> Objective:
            i = suspects[number]
            value = torch.log_softmax(logits, dim=-1)[:, samples.answers[i]]
            seen[i] = float(value.detach())
            return Objective(value, None, None)

        with self:
            self.run_block(batches, log_probability)
        return seen

    def _begin(self, batch: Batch, keep: torch.Tensor | None = None) -> None:
        self.sightings.sample = int(batch.index[0])
        super()._begin(batch, keep)

    def _on_tap(
        self, location: SiteLocation, act: torch.Tensor, grad: torch.Tensor, routing: Routing | None = None
    ) -> None:
        self.sightings.look(location, act, grad, routing)
