"""What a run scores, and what makes two runs the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from culnig_fast.attributor import Attributor
from culnig_fast.batching import Batch, make_batch
from culnig_fast.chosen_positions import ChosenPositions
from culnig_fast.questions import EncodedQuestions
from culnig_fast.version import __version__


@dataclass(frozen=True)
class Samples:
    """What is scored.

    Attributes:
        ids: names, for messages.
        token_ids: the prompt of each.
        answers: int64 [samples] gold tokens.
        groups: int64 [samples] rows of the totals, or float64 [samples, rows], as `Attributor.backward` takes them.
        clamp: negative weighted scores count as 0.
        batch_size: samples a batch; None forms batches by the budget.
        marks: bool [tokens] of each, the positions that count; None means all.
    """

    ids: tuple[str, ...]
    token_ids: Sequence[Sequence[int]]
    answers: torch.Tensor
    groups: torch.Tensor
    clamp: bool = False
    batch_size: int | None = None
    marks: Sequence[np.ndarray] | None = None

    @classmethod
    def of(
        cls,
        encoded: EncodedQuestions,
        membership: np.ndarray,
        chosen: ChosenPositions,
        clamp: bool,
        batch_size: int | None,
    ) -> Samples:
        """Encoded questions, with the rows of the totals that each counts in and the positions that count."""
        return cls(
            tuple(question.id for question in encoded.questions),
            encoded.token_ids,
            torch.tensor(encoded.answers),
            torch.from_numpy(membership),
            clamp,
            batch_size,
            chosen.marks,
        )

    @property
    def lengths(self) -> list[int]:
        """Tokens of each."""
        return [len(tokens) for tokens in self.token_ids]

    def batch(self, index: np.ndarray, device: torch.device, width: int | None = None) -> Batch:
        """Some of them, padded together; see `make_batch`."""
        return make_batch(self.token_ids, index, device, width, self.marks)


def run_facts(
    model: Any, attributor: Attributor, samples: Samples, groups: Sequence[str], **options: Any
) -> Mapping[str, Any]:
    """What makes two runs the same run, by name, for `Checkpoint`.

    Args:
        model: what tells its weights from others.
        attributor: how scores are made.
        samples: what is scored.
        groups: names of the rows.
        options: what else changes the result, or where an interrupted run goes on.
    """
    return {
        "model": model,
        "layout": attributor.layout.to_dict(),
        "questions": [samples.ids, samples.token_ids, samples.answers.tolist(), samples.groups.tolist(), groups],
        "options": {
            "clamp": samples.clamp,
            "padding": attributor.padding,
            "reduction": attributor.reduction,
            "path": attributor.path,
            **options,
        },
        "version": __version__,
    }
