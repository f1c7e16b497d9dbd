"""culnig_fast's Attributor, for Hugging Face decoders."""

from __future__ import annotations

from typing import Any

import torch

from harness.batches import Batch

NAME = "attributor"
SUMMARY = "ours: cf.Attributor, which finds the neurons by itself"
LIBRARY = "culnig_fast"
NOTE = "finds, joins and proves the layers anew in each call; kept open over many batches, it does so once"


def ready(model: Any) -> Any:
    """The Hugging Face model as it is."""
    return model


def scores(model: Any, batch: Batch) -> torch.Tensor:
    """float64 [neurons]."""
    import culnig_fast as cf

    with cf.Attributor(model) as attributor:
        logits = attributor.forward(batch.input_ids, batch.lengths)
        log_p = logits.log_softmax(-1).gather(1, batch.answers[:, None])[:, 0]
        attributor.backward(log_p, weight=(2 * log_p.detach().double()).exp())
    return attributor.totals[0]
