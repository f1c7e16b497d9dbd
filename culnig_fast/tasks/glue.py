"""QNLI validation and MRPC test of GLUE, and their train splits: two-way questions about a pair of texts.

CULNIG, sections 8 and 9.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from culnig_fast.errors import CulnigError
from culnig_fast.questions import Question
from culnig_fast.tasks.base import Task
from culnig_fast.tasks.rows import Row, is_file, read_rows
from culnig_fast.tasks.wordings import ChoiceItem, Wording, four_wordings, worded

HUB_ID = "nyu-mll/glue"


@dataclass(frozen=True)
class GluePair(Task):
    """What the two share; a question's id is `index/wording`, and all are in one group.

    `test` holds the rows loaded, each in four wordings. `train` holds the training split, one question a row, `train/`
    before its id and the four wordings in turn: 104,743 rows of QNLI are enough. It is read when it is asked for, from
    the file given or from where the hub's test rows came from.

    Tab-separated files are read as GLUE writes them: a quote is a character like any other.
    """

    items: tuple[ChoiceItem, ...]
    training: str | Path | None = None

    splits: ClassVar[tuple[str, ...]] = ("test", "train")
    files: ClassVar[Mapping[str, str]] = {"train": "the rows of the training split, beside a local file"}
    wordings_each: ClassVar[int] = 4
    hub: ClassVar[str | None] = HUB_ID
    hub_split: ClassVar[str]
    columns: ClassVar[Mapping[str, tuple[str, ...]]]
    labels: ClassVar[Mapping[str, int]]
    options: ClassVar[tuple[str, str]]
    wordings: ClassVar[tuple[Wording, ...]]

    @classmethod
    def load(cls, source: str | Path | None = None, train: str | Path | None = None) -> GluePair:
        """Read the original file, the hub's columns in any format, or the hub.

        Args:
            source: of the rows that are evaluated.
            train: of the training rows; None means the hub's, where `source` is a hub id.

        Raises:
            CulnigError: a missing file or column, an empty text, an unknown or hidden label.
        """
        source = HUB_ID if source is None else source
        rows = read_rows(source, config=cls.name, split=cls.hub_split, quoted_tabs=False)
        return cls(tuple(cls._items(rows, source)), source if train is None and not is_file(source) else train)

    @classmethod
    def _items(cls, rows: list[Row], source: str | Path) -> Iterator[ChoiceItem]:
        for number, row in enumerate(rows, 1):
            cells = {part: _cell(row, names, number, source) for part, names in cls.columns.items()}
            label = cells["label"].strip()
            if label not in cls.labels:
                hidden = " (hidden; take a split with labels)" if label == "-1" else ""
                raise CulnigError(
                    f"row {number} of {source} has the unknown label {label!r}{hidden}; "
                    f"the labels are {', '.join(cls.labels)}"
                )
            yield ChoiceItem(cells["id"], cls.name, cls._text(cells), cls.options, cls.labels[label])

    @classmethod
    @abstractmethod
    def _text(cls, cells: Mapping[str, str]) -> str: ...

    def _questions(self, split: str, tokenizer: Any) -> list[Question]:
        if split == "test":
            return worded(self.items, self.wordings, tokenizer)
        if self.training is None:
            raise CulnigError(f"{self.name} was read from a file without training rows; give theirs as train")
        rows = read_rows(self.training, config=self.name, split="train", quoted_tabs=False)
        items = [replace(item, id=f"train/{item.id}") for item in self._items(rows, self.training)]
        every = len(self.wordings)
        return [
            question
            for place, wording in enumerate(self.wordings)
            for question in worded(items[place::every], (wording,), tokenizer)
        ]


class Qnli(GluePair):
    """Does the sentence hold the answer to the question; 0 and `entailment`: it does."""

    name: ClassVar[str] = "qnli"
    hub_split: ClassVar[str] = "validation"
    columns: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "id": ("idx", "index"),
        "first": ("question",),
        "second": ("sentence",),
        "label": ("label",),
    }
    labels: ClassVar[Mapping[str, int]] = {"entailment": 0, "not_entailment": 1, "0": 0, "1": 1}
    options: ClassVar[tuple[str, str]] = ("Yes", "No")
    wordings: ClassVar[tuple[Wording, ...]] = four_wordings(
        "Can the question be answered from the sentence alone? Reply with the <label> of your verdict,",
        "Does the sentence hold what the question asks for? Give nothing but the <label> of yes or no,",
    )

    @classmethod
    def _text(cls, cells: Mapping[str, str]) -> str:
        return f"Question: {cells['first'].strip()}\nSentence: {cells['second'].strip()}"


class Mrpc(GluePair):
    """Do two sentences say the same; 1 and `equivalent`: they do.

    Its ids in the original file, which numbers no rows, are those of the two sentences.
    """

    name: ClassVar[str] = "mrpc"
    hub_split: ClassVar[str] = "test"
    columns: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "id": ("idx", "index", "#1 ID"),
        "first": ("sentence1", "#1 String"),
        "second": ("sentence2", "#2 String"),
        "label": ("label", "Quality"),
    }
    labels: ClassVar[Mapping[str, int]] = {"equivalent": 0, "not_equivalent": 1, "1": 0, "0": 1}
    options: ClassVar[tuple[str, str]] = ("Yes", "No")
    wordings: ClassVar[tuple[Wording, ...]] = four_wordings(
        "Do the two sentences mean the same? Reply with the <label> of your verdict,",
        "Is one sentence a paraphrase of the other? Give nothing but the <label> of yes or no,",
    )

    @classmethod
    def _text(cls, cells: Mapping[str, str]) -> str:
        return f"First sentence: {cells['first'].strip()}\nSecond sentence: {cells['second'].strip()}"

    @classmethod
    def _items(cls, rows: list[Row], source: str | Path) -> Iterator[ChoiceItem]:
        for row in rows:
            if "#1 ID" in row and "#2 ID" in row:
                row["#1 ID"] = f"{row['#1 ID']}-{row['#2 ID']}"
        return super()._items(rows, source)


def _cell(row: Row, names: tuple[str, ...], number: int, source: str | Path) -> str:
    for name in names:
        if name in row:
            if not row[name].strip():
                raise CulnigError(f"row {number} of {source} has nothing in column {name}; is the file complete?")
            return row[name]
    raise CulnigError(
        f"{source} has no column {' or '.join(names)} in row {number} (found: {', '.join(row)}); is it the right file?"
    )
