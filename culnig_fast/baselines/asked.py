"""Questions made ready for the methods of this package: tokens, answers, groups, batches and the model's own head."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from culnig_fast.architecture import Architecture, architecture_of
from culnig_fast.batching import Batch, default_batch_tokens, make_batch, plan_batches
from culnig_fast.last_position import LastPosition, evaluation_mode, frozen_parameters
from culnig_fast.prompt_limits import check_encoded
from culnig_fast.questions import Question, encode_questions


@dataclass(frozen=True)
class Asked:
    """Encoded questions of one model.

    Attributes:
        architecture: the model.
        ids: of the questions kept.
        unusable: ids of those left out.
        token_ids: the prompt of each.
        answers: int64 [n] gold tokens.
        groups: names, in the order of their first question.
        group_of: int64 [n].
        batch_tokens: padded tokens a batch.
        batches: index arrays.
    """

    architecture: Architecture
    ids: tuple[str, ...]
    unusable: tuple[str, ...]
    token_ids: Sequence[Sequence[int]]
    answers: torch.Tensor
    groups: tuple[str, ...]
    group_of: torch.Tensor
    batch_tokens: int
    batches: Sequence[np.ndarray]

    @property
    def counts(self) -> np.ndarray:
        """Questions of each group, int64 [groups]."""
        return np.bincount(self.group_of.numpy(), minlength=len(self.groups))

    def batch(self, index: np.ndarray) -> Batch:
        """The chosen questions, padded, on the model's device."""
        return make_batch(self.token_ids, index, self.architecture.embedding.weight.device)

    @contextlib.contextmanager
    def head(self) -> Iterator[LastPosition]:
        """The model frozen, in evaluation mode, its head on last positions only; as it was after the block."""
        model = self.architecture.model
        with evaluation_mode(model), frozen_parameters(model):
            head = LastPosition(model, self.architecture.head)
            try:
                yield head
            finally:
                head.remove()


def ask(
    model: Any,
    tokenizer: Any,
    questions: Iterable[Question],
    batch_tokens: int | None = None,
    on_unusable: str = "error",
) -> Asked:
    """Encode questions and plan their batches; CulnigError as `encode_questions`, `discover` and `check_encoded`."""
    encoded = encode_questions(tokenizer, questions, on_unusable)
    architecture = architecture_of(model)
    check_encoded(architecture.model, encoded)
    groups = tuple(dict.fromkeys(question.group for question in encoded.questions))
    row = {name: i for i, name in enumerate(groups)}
    if batch_tokens is None:
        batch_tokens = default_batch_tokens(architecture.embedding.weight.device)
    return Asked(
        architecture=architecture,
        ids=tuple(question.id for question in encoded.questions),
        unusable=encoded.unusable,
        token_ids=encoded.token_ids,
        answers=torch.tensor(encoded.answers),
        groups=groups,
        group_of=torch.tensor([row[question.group] for question in encoded.questions]),
        batch_tokens=batch_tokens,
        batches=plan_batches([len(tokens) for tokens in encoded.token_ids], batch_tokens),
    )


def gold_log_p(logits: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
    """log P of the gold tokens, [rows], from logits [rows, vocabulary]."""
    return torch.log_softmax(logits, dim=-1).gather(1, gold.to(logits.device)[:, None])[:, 0]
