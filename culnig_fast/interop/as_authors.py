"""The published program's choices, for scores that are to agree with its own.

* 16 questions a batch in file order, padding counted as a score of 0 before the maximum, so that a score depends on
  its batch;
* in a control set each weighted sample score is clamped at 0;
* N is the number of unique ids: four wordings of one item count once;
* pools are cut at int(N·t), which selection does anyway.

Its models run in the dtype that they are loaded in, with gradients of P itself; on a float32 model that is the same to
1e-5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from culnig_fast.attribution import attribute
from culnig_fast.interop.dataset_names import base_id
from culnig_fast.questions import Question
from culnig_fast.scores import ScoreTable

AS_AUTHORS: dict[str, Any] = {"padding": "zero", "batch_size": 16, "reduction": "max", "clamp_control": True}
"""Options of `attribute`."""


def attribute_as_authors(
    model: Any,
    tokenizer: Any,
    questions: Iterable[Question],
    *,
    task: str | None = None,
    control: bool = False,
    **options: Any,
) -> ScoreTable:
    """Scores as the published program forms them.

    Args:
        model, tokenizer, questions: as for `attribute`; the order of the questions matters.
        task: the benchmark, which says what of an id is an item's; None takes what stands before the first slash.
        control: the questions are a control set.
        options: of `attribute`, all but those in `AS_AUTHORS`.

    Returns:
        a table whose counts are unique items, each in the group of its first question.

    Raises:
        CulnigError: as `attribute`.
    """
    questions = list(questions)
    table = attribute(model, tokenizer, questions, control=control, **AS_AUTHORS, **options)
    return count_unique_ids(table, questions, task)


def count_unique_ids(table: ScoreTable, questions: Iterable[Question], task: str | None = None) -> ScoreTable:
    """The table with N by unique id; `questions` are those it was made of (ones left out do not count)."""
    kept = set(table.ids)
    first: dict[str, str] = {}
    for question in questions:
        if question.id in kept:
            first.setdefault(base_id(task, question.id), question.group)
    counts = np.array([sum(group == name for group in first.values()) for name in table.groups])
    metadata = {**table.metadata, "as_authors": True, "samples": table.n_samples}
    return dataclasses.replace(table, counts=counts, metadata=metadata)
