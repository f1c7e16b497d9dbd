"""Any multiple-choice questions of one's own: a file with the columns id, group, prompt, answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from culnig_fast.errors import CulnigError
from culnig_fast.questions import Question
from culnig_fast.tasks.base import Task
from culnig_fast.tasks.prompts import render
from culnig_fast.tasks.rows import read_rows, require_columns


@dataclass(frozen=True)
class Plain(Task):
    """Rows as they are; each prompt is put through the chat template."""

    name: ClassVar[str] = "plain"
    splits: ClassVar[tuple[str, ...]] = ("all",)

    rows: tuple[Question, ...]

    @classmethod
    def load(cls, source: str | Path | None = None) -> Plain:
        """Read a csv, tsv, jsonl, json or parquet file.

        Raises:
            CulnigError: no file was named, it cannot be read, or a column or cell is missing.
        """
        if source is None:
            raise CulnigError("task plain needs a file; name one with columns id, group, prompt, answer")
        rows = read_rows(source)
        require_columns(rows, ("id", "group", "prompt", "answer"), source)
        return cls(tuple(Question(row["id"], row["group"], row["prompt"], row["answer"]) for row in rows))

    def _questions(self, split: str, tokenizer: Any) -> list[Question]:
        return [Question(row.id, row.group, render(tokenizer, row.prompt), row.answer) for row in self.rows]
