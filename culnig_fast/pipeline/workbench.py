"""What the stages of a run share: model, tokenizer, tasks and their questions, each loaded when first asked for."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from culnig_fast.architecture import Architecture, discover
from culnig_fast.evaluation import Prepared, prepare
from culnig_fast.models import EMBEDDED, load_model, load_tokenizer, local_folder
from culnig_fast.pipeline.config import RunConfig, TaskConfig
from culnig_fast.pipeline.digests import digest, model_digest
from culnig_fast.questions import Question, SplitQuestions, first_of_groups, split_usable
from culnig_fast.tasks.base import Task, load_task


class Workbench:
    """A run's model and data.

    A run of which everything is done loads no weights: the checkpoint's files are hashed, its tokenizer renders the
    questions, and both are compared with the manifest.

    Args:
        config: of the run.
        progress: show progress bars on standard error.
    """

    def __init__(self, config: RunConfig, *, progress: bool = True) -> None:
        self.config, self.progress = config, progress
        self._questions: dict[tuple[str, str], list[Question]] = {}
        self._prepared: tuple[str, Prepared] | None = None

    @functools.cached_property
    def folder(self) -> Path:
        """Of the checkpoint."""
        model = self.config.model
        return local_folder(model.name, revision=model.revision, trust_remote_code=model.trust_remote_code)

    @functools.cached_property
    def model_digest(self) -> str:
        """Of the checkpoint's files, and how they are loaded."""
        model = self.config.model
        return digest([model_digest(self.folder), model.dtype, self.device, model.trust_remote_code])

    @functools.cached_property
    def device(self) -> str:
        """Where the model goes."""
        import torch

        return self.config.model.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @functools.cached_property
    def model(self) -> Any:
        """The model; loading it takes the time and memory that it takes."""
        model = self.config.model
        loaded, _ = load_model(
            str(self.folder), dtype=model.dtype, device=self.device, trust_remote_code=model.trust_remote_code
        )
        # Where a hub's files lie is no part of a result.
        loaded.config._name_or_path = model.name if model.name == EMBEDDED else Path(model.name).name
        return loaded

    @functools.cached_property
    def architecture(self) -> Architecture:
        """The model's neurons, found once for all interventions."""
        return discover(self.model)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return load_tokenizer(self.folder, trust_remote_code=self.config.model.trust_remote_code)

    @functools.cached_property
    def tasks(self) -> dict[str, Task]:
        """Every task of the run, by label; all are read before anything else is done."""
        return {task.label: _load(task) for task in self.config.tasks}

    def questions(self, label: str, split: str) -> list[Question]:
        """The questions of a task's split, at most `limit` of each group."""
        key = label, split
        if key not in self._questions:
            questions = self.tasks[label].questions(split, self.tokenizer)
            self._questions[key] = first_of_groups(questions, self.config.task(label).limit)
        return self._questions[key]

    def questions_digest(self, label: str, split: str) -> str:
        """Of those questions, as the model sees them."""
        return digest([[q.id, q.group, q.prompt, q.answer] for q in self.questions(label, split)])

    def evaluated(self) -> dict[str, str]:
        """Split by label of every task that is evaluated."""
        return {task.label: self._split(task) for task in self.config.tasks if task.evaluate}

    def left_out(self, label: str) -> SplitQuestions:
        """The evaluated questions of a task, sorted by whether they are asked; all are where answers are generated."""
        questions = self.questions(label, self.evaluated()[label])
        if self.tasks[label].generates or self.config.on_unusable == "error":
            return SplitQuestions(tuple(questions), ())
        return split_usable(self.tokenizer, questions)

    def by_country(self, label: str) -> bool:
        """Whether groups of the evaluated split are among the run's countries."""
        groups = {question.group for question in self.questions(label, self.evaluated()[label])}
        return not groups.isdisjoint(self.config.countries)

    def prepared(self, label: str) -> Prepared:
        """The evaluated questions of a task, tokenised and batched; only the last task's are kept."""
        if self._prepared is None or self._prepared[0] != label:
            questions = self.questions(label, self.evaluated()[label])
            self._prepared = (
                label,
                prepare(
                    self.model,
                    self.tokenizer,
                    questions,
                    batch_tokens=self.config.batch_tokens,
                    on_unusable=self.config.on_unusable,
                ),
            )
        return self._prepared[1]

    def _split(self, task: TaskConfig) -> str:
        splits = self.tasks[task.label].splits
        return task.split or ("test" if "test" in splits else splits[0])


def _load(task: TaskConfig) -> Task:
    data: str | None = task.data
    files: dict[str, Any] = dict(task.files)
    if data == EMBEDDED:
        from culnig_fast.demo.embedded import task_files

        data, files = task_files(task.task)
    return load_task(task.task, data, files)
