"""The floor: the untouched model, forward and activation-only backward, nothing scored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

from harness.batches import Batch
from harness.methods.base import Plain, Session
from harness.passes import frozen_model, gold_log_p


class Bare(Plain):
    """Frozen weights, logits of the last position only, backward to the embedding's output."""

    name: ClassVar[str] = "bare"
    summary: ClassVar[str] = "the Hugging Face model alone: last-position logits, activation-only backward, no scores"

    @contextlib.contextmanager
    def open(self, model: Any, n_groups: int) -> Iterator[Session]:
        """See `Method.open`."""
        with frozen_model(model) as last_logits:

            def step(batch: Batch) -> None:
                gold_log_p(last_logits(batch), batch).sum().backward()

            yield Session(step, None)
