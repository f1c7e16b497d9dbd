"""CulturalBench-Easy: four-way questions about everyday culture in 45 countries (CULNIG, section 8)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from culnig_fast.errors import CulnigError
from culnig_fast.questions import Question
from culnig_fast.tasks.base import Task
from culnig_fast.tasks.countries import place_name
from culnig_fast.tasks.rows import Row, read_rows, require_columns
from culnig_fast.tasks.wordings import ChoiceItem, four_wordings, worded

HUB_ID, HUB_CONFIG, HUB_SPLIT = "kellycyy/CulturalBench", "CulturalBench-Easy", "test"

WORDINGS = four_wordings(
    "Pick the one option that fits best. Reply with its <label> alone,",
    "Which option is the right one? Give nothing but its <label>,",
)

_OPTIONS = tuple(f"prompt_option_{letter}" for letter in "abcd")


@dataclass(frozen=True)
class CulturalBench(Task):
    """All rows are `test`, in file order. Groups are countries; a question's id is `data_idx/wording`."""

    items: tuple[ChoiceItem, ...]

    name: ClassVar[str] = "culturalbench"
    splits: ClassVar[tuple[str, ...]] = ("test",)
    wordings_each: ClassVar[int] = len(WORDINGS)
    hub: ClassVar[str | None] = HUB_ID

    @classmethod
    def load(cls, source: str | Path | None = None) -> CulturalBench:
        """Read `CulturalBench-Easy.csv`, the same in another format, or the hub's.

        Raises:
            CulnigError: a missing file or column, an empty option, an answer that is none of A–D, a repeated row.
        """
        source = HUB_ID if source is None else source
        rows = read_rows(source, config=HUB_CONFIG, split=HUB_SPLIT)
        require_columns(rows, ("data_idx", "prompt_question", *_OPTIONS, "answer", "country"), source)
        return cls(tuple(_item(row, source) for row in rows))

    def _questions(self, split: str, tokenizer: Any) -> list[Question]:
        return worded(self.items, WORDINGS, tokenizer)


def _item(row: Row, source: str | Path) -> ChoiceItem:
    where = f"{source}: row {row['data_idx']}"
    options = tuple(row[name].strip() for name in _OPTIONS)
    for letter, option in zip("ABCD", options, strict=True):
        if not option:
            raise CulnigError(f"{where} has no text for option {letter}; is the file complete?")
    answer = row["answer"].strip().upper()
    if answer not in tuple("ABCD"):
        raise CulnigError(f"{where} has the unknown answer {row['answer']!r}; it must be A, B, C or D")
    return ChoiceItem(
        row["data_idx"],
        place_name(row["country"]),
        row["prompt_question"].strip(),
        options,
        "ABCD".index(answer),
    )
