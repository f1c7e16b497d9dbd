"""Questions as training samples: the model sees the prompt, and learns the one token that answers it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from culnig_fast.batching import make_batch
from culnig_fast.errors import CulnigError
from culnig_fast.last_position import LastPosition
from culnig_fast.questions import Question, encode_questions


@dataclass(frozen=True)
class TrainingSet:
    """Samples as a Trainer takes them.

    Attributes:
        token_ids: prompt of each.
        answers: vocabulary index of each one's answer.
        unusable: ids left out because their answer is not one token.
    """

    token_ids: tuple[tuple[int, ...], ...]
    answers: tuple[int, ...]
    unusable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> tuple[tuple[int, ...], int]:
        return self.token_ids[index], self.answers[index]


def training_set(
    tokenizer: Any,
    questions: Iterable[Question],
    *,
    limit: int | None = None,
    seed: int = 0,
    on_unusable: str = "error",
) -> TrainingSet:
    """Tokenise questions for training, in the order given.

    Args:
        limit: draw so many without repeats, by `seed`; None keeps all.
        on_unusable: `error` or `skip` for an answer that is not one token.

    Raises:
        CulnigError: no questions, a repeated id, or an unusable answer.
    """
    asked = list(questions)
    if limit is not None and limit < len(asked):
        asked = [asked[i] for i in sorted(random.Random(seed).sample(range(len(asked)), limit))]
    encoded = encode_questions(tokenizer, asked, on_unusable)
    return TrainingSet(encoded.token_ids, encoded.answers, encoded.unusable)


def collate(samples: Sequence[tuple[Sequence[int], int]]) -> dict[str, torch.Tensor]:
    """Pad samples on the right.

    Returns:
        `input_ids` int64 [batch, T], `lengths` int64 [batch] of the prompts, `answers` int64 [batch].
    """
    prompts, answers = zip(*samples, strict=True)
    batch = make_batch(prompts, np.arange(len(prompts)), torch.device("cpu"))
    return {"input_ids": batch.input_ids, "lengths": batch.lengths, "answers": torch.tensor(answers)}


def answer_loss(model: Any, head: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean of −log P(answer | prompt) over a batch, a float32 scalar.

    That is the loss of a causal model whose labels are −100 everywhere but at the answer, without the logits of the
    other positions: for 4 prompts of 400 tokens and 262,000 words those take 1.7 GB in float32, several times over.

    Args:
        model: the model, or a wrapper of it.
        head: its output embedding.
        batch: from `collate`, on the model's device.
    """
    last = LastPosition(model, head)
    try:
        logits = last.logits(batch["input_ids"], batch["lengths"], **_further_inputs(model, batch["input_ids"]))
    finally:
        last.remove()
    return functional.cross_entropy(logits, batch["answers"])


def set_apart(
    training: Sequence[Question], evaluated: Mapping[str, Sequence[Question]]
) -> tuple[list[Question], list[str]]:
    """(training questions whose prompt is not evaluated, ids of the others).

    Benchmarks repeat themselves here and there; more than one question in a hundred means that the split is wrong.

    Raises:
        CulnigError: more than that.
    """
    shown = {question.prompt: label for label, questions in evaluated.items() for question in questions}
    kept = [question for question in training if question.prompt not in shown]
    left_out = [question for question in training if question.prompt in shown]
    if 100 * len(left_out) > len(training):
        first = left_out[0]
        raise CulnigError(
            f"{len(left_out)} of {len(training)} training questions are evaluated too ({first.id!r} in "
            f"{shown[first.prompt]}, …); choose a split for training that shares nothing with the evaluated one"
        )
    return kept, [question.id for question in left_out]


def _further_inputs(model: Any, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What some multimodal models ask for in training only: that no token is an image's."""
    if getattr(model, "config", None) is not None and getattr(model.config, "vision_config", None) is not None:
        return {"token_type_ids": torch.zeros_like(input_ids)}
    return {}
