"""CommonsenseQA validation: five-way questions of common sense (CULNIG, section 8)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from culnig_fast.errors import CulnigError
from culnig_fast.files import parse_json
from culnig_fast.questions import Question
from culnig_fast.tasks.base import Task
from culnig_fast.tasks.rows import Row, read_rows, require_columns
from culnig_fast.tasks.wordings import ChoiceItem, four_wordings, worded

HUB_ID, HUB_SPLIT = "tau/commonsense_qa", "validation"

WORDINGS = four_wordings(
    "Use common sense and pick the best option. Reply with its <label> alone,",
    "Which option makes the most sense? Give nothing but its <label>,",
)


@dataclass(frozen=True)
class CommonsenseQA(Task):
    """All rows are `test`. One group; a question's id is `id/wording`."""

    items: tuple[ChoiceItem, ...]

    name: ClassVar[str] = "commonsenseqa"
    splits: ClassVar[tuple[str, ...]] = ("test",)
    wordings_each: ClassVar[int] = len(WORDINGS)
    hub: ClassVar[str | None] = HUB_ID

    @classmethod
    def load(cls, source: str | Path | None = None) -> CommonsenseQA:
        """Read the hub's layout (question, choices, answerKey) or the original site's (question.stem and .choices).

        Raises:
            CulnigError: a missing file or column, choices that are not five texts, an answer that is none of them.
        """
        source = HUB_ID if source is None else source
        rows = read_rows(source, split=HUB_SPLIT)
        require_columns(rows, ("id", "question", "answerKey"), source)
        if "choices" in rows[0]:
            require_columns(rows, ("choices",), source)
        return cls(tuple(_item(row, source) for row in rows))

    def _questions(self, split: str, tokenizer: Any) -> list[Question]:
        return worded(self.items, WORDINGS, tokenizer)


def _item(row: Row, source: str | Path) -> ChoiceItem:
    where = f"{source}: row {row['id']}"
    question, choices = _parts(row, where)
    try:
        if isinstance(choices, dict):
            pairs = list(zip(choices["label"], choices["text"], strict=True))
        else:
            pairs = [(choice["label"], choice["text"]) for choice in choices]
    except (KeyError, TypeError, ValueError) as error:
        raise CulnigError(f"{where} needs choices with as many labels as texts; is this CommonsenseQA?") from error
    labels, texts = [str(label) for label, _ in pairs], tuple(str(text).strip() for _, text in pairs)
    if len(set(labels)) != 5 or len(labels) != 5 or not all(texts):
        raise CulnigError(f"{where} has the choices {pairs!r:.120}; five with a label and a text each are needed")
    answer = row["answerKey"].strip()
    if answer not in labels:
        raise CulnigError(
            f"{where} has the unknown answer {answer!r}, none of {', '.join(labels)}; the test split hides its "
            "answers, use validation"
        )
    return ChoiceItem(row["id"], "commonsenseqa", question.strip(), texts, labels.index(answer))


def _parts(row: Row, where: str) -> tuple[str, Any]:
    """Question text and choices of either layout."""
    try:
        if "choices" in row:
            return row["question"], parse_json(row["choices"], "no JSON", parse_int=str, parse_float=str)
        inner = parse_json(row["question"], "no JSON", parse_int=str, parse_float=str)
        return str(inner["stem"]), inner["choices"]
    except (ValueError, KeyError, TypeError) as error:
        what = "choices that are not JSON" if "choices" in row else "neither a column choices nor question.stem"
        raise CulnigError(f"{where} has {what}; give CommonsenseQA's own jsonl or the hub's parquet file") from error
