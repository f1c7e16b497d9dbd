"""What a benchmark is to the rest of the program, and the list of those there are.

To add one, write one file `tasks/<name>.py` with one subclass of `Task`; nothing else has to be told of it,
for `tasks()` finds it by looking. The subclass

1. sets `name` (how the command line calls it), `splits` (some of `SPLITS`) and, where it needs more than one
   file, `files` (name → what it is, for the help text);
2. has `load(source=None, **files)`, a class method: read with `rows.read_rows`, check with
   `rows.require_columns`, and raise CulnigError with one sentence for whatever the file may get wrong, naming
   the row. `source` None means the benchmark's own place on the hub or in this package;
3. has `_questions(split, tokenizer)`: texts through `prompts.render`, options through `prompts.shuffled` with
   a key that names the question and the wording, groups through `countries.country_name` where they are
   countries. The same in every run: no global random state, no clock, no order of a set.

Where a point is more than right or wrong, the subclass overrides `score`; where the answer is a text and not one
token, it sets `generates`, and `generation.answer` asks its questions in place of `evaluation.evaluate`.

Modules in this folder are all imported to list the tasks, so they import torch, transformers, pandas and
datasets inside functions or not at all.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from culnig_fast.errors import CulnigError
from culnig_fast.questions import Question, check_unique_ids

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("all", "neur", "control", "test", "train")
"""neur finds neurons, control is neur without what is asked, test is for evaluation, all is neur and test.

train is the benchmark's own training split, for fine-tuning."""


class Task(ABC):
    """A benchmark loaded into memory."""

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    files: ClassVar[Mapping[str, str]] = {}
    hub: ClassVar[str | None] = None
    generates: ClassVar[bool] = False
    wordings_each: ClassVar[int] = 1

    @classmethod
    @abstractmethod
    def load(cls, *args: Any, **kwargs: Any) -> Task:
        """`load(source=None, **files)`: read the benchmark from a local file or the hub.

        Raises:
            CulnigError: the source cannot be read or is not this benchmark.
        """

    def questions(self, split: str, tokenizer: Any) -> list[Question]:
        """The questions of a split as the tokenizer's model is to see them, ids unique.

        A control question has the id of the neur question that it was made from.

        Raises:
            CulnigError: the task has no such split, nothing is in it, or two questions share an id.
        """
        if split not in self.splits:
            raise CulnigError(f"{self.name} has no split {split!r}; choose from {', '.join(self.splits)}")
        questions = self._questions(split, tokenizer)
        if not questions:
            raise CulnigError(f"split {split!r} of {self.name} is empty; is the file complete?")
        check_unique_ids(questions)
        return questions

    def score(self, question_id: str, answer: str, prediction: str) -> float:
        """Points of one prediction, 0…100: all or nothing by equality with the answer as text, unless overridden.

        Args:
            question_id: the id of one of this task's questions.
            answer: its gold label.
            prediction: what the model answered, as text.
        """
        return 100.0 * (prediction == answer)

    def scores(self, evaluation: Any) -> np.ndarray:
        """float64 [n]: `score` of each row of an `Evaluation` of this task's questions.

        Raises:
            CulnigError: it holds a question that this task does not have, where the task needs to know.
        """
        import numpy as np

        rows = zip(evaluation.ids, evaluation.answers, evaluation.predictions, strict=True)
        return np.array([self.score(*row) for row in rows], dtype=np.float64)

    def notes(self) -> tuple[str, ...]:
        """What loading left out or did without, a sentence each, for reports."""
        return ()

    @abstractmethod
    def _questions(self, split: str, tokenizer: Any) -> list[Question]: ...


def tasks() -> dict[str, type[Task]]:
    """Every benchmark by name, in the order of their files."""
    package = importlib.import_module("culnig_fast.tasks")
    found: dict[str, type[Task]] = {}
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            # Defined there and complete: modules also hold the names that they import.
            if inspect.isclass(value) and value.__module__ == info.name and issubclass(value, Task):
                if inspect.isabstract(value) or not hasattr(value, "name"):
                    continue  # what several tasks of one file share
                found[value.name] = value
    return found


def load_task(name: str, source: str | Path | None = None, files: Mapping[str, str | Path] | None = None) -> Task:
    """Load a benchmark by name, as the command line does.

    Args:
        name: one of `tasks()`.
        source: a local file or a hub id; None means the benchmark's own.
        files: further files by the names that the benchmark's `files` lists.

    Raises:
        CulnigError: an unknown benchmark or file name, or what the benchmark's `load` raises.
    """
    known = tasks()
    if name not in known:
        raise CulnigError(f"unknown task {name!r}; choose from {', '.join(known)}")
    files = files or {}
    for key in files:
        if key not in known[name].files:
            takes = ", ".join(known[name].files) or "none"
            raise CulnigError(f"task {name} takes no further file {key!r} (it takes: {takes})")
    return known[name].load(source, **files)
