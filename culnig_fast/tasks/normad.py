"""NormAd: is what someone does in a story acceptable where it happens (CULNIG, section 8)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from culnig_fast.errors import CulnigError
from culnig_fast.questions import Question
from culnig_fast.tasks.base import Task
from culnig_fast.tasks.countries import in_list, place_name
from culnig_fast.tasks.rows import Row, read_rows, require_columns
from culnig_fast.tasks.wordings import ChoiceItem, first_halves, four_wordings, worded

HUB_ID, HUB_SPLIT = "akhilayerukola/NormAd", "train"

LABELS = ("yes", "no", "neutral")
OPTIONS = ("It is acceptable.", "It is not acceptable.", "It is neither; the norms there say nothing on it.")

WORDINGS = four_wordings(
    "By the manners of that country, which verdict is right? Reply with its <label> alone,",
    "How would people there judge the behaviour in the story? Give nothing but the <label> of the verdict,",
)


@dataclass(frozen=True)
class NormAd(Task):
    """Stories in file order; of each country and gold label the first half is `neur`, the rest `test`.

    The prompt names the country and tells the story; the rule of thumb, the value and the explanation, which
    give the verdict away, are left out. Groups are countries; a question's id is `ID/wording`.
    """

    items: tuple[ChoiceItem, ...]

    name: ClassVar[str] = "normad"
    splits: ClassVar[tuple[str, ...]] = ("all", "neur", "test")
    wordings_each: ClassVar[int] = len(WORDINGS)
    hub: ClassVar[str | None] = HUB_ID

    @classmethod
    def load(cls, source: str | Path | None = None) -> NormAd:
        """Read `normad_etiquette_final_data.csv`, the same in another format, or the hub's.

        Raises:
            CulnigError: a missing file or column, an empty story, a label other than yes, no and neutral.
        """
        source = HUB_ID if source is None else source
        rows = read_rows(source, split=HUB_SPLIT)
        require_columns(rows, ("ID", "Country", "Story", "Gold Label"), source)
        labels = [_label(row, source) for row in rows]
        cells = [(place_name(row["Country"]), label) for row, label in zip(rows, labels, strict=True)]
        halves = first_halves(cells)
        return cls(tuple(_item(*parts, source) for parts in zip(rows, cells, halves, strict=True)))

    def _questions(self, split: str, tokenizer: Any) -> list[Question]:
        return worded((item for item in self.items if split in ("all", item.half)), WORDINGS, tokenizer)


def _label(row: Row, source: str | Path) -> str:
    label = row["Gold Label"].strip().lower()
    if label not in LABELS:
        raise CulnigError(
            f"{source}: row {row['ID']} has the unknown Gold Label {row['Gold Label']!r}; "
            f"it must be one of {', '.join(LABELS)}"
        )
    return label


def _item(row: Row, cell: tuple[str, str], half: str, source: str | Path) -> ChoiceItem:
    country, label = cell
    story = row["Story"].strip()
    if not story:
        raise CulnigError(f"{source}: row {row['ID']} has an empty Story; is the file complete?")
    text = f"Country: {in_list(country)}\n\n{story}"
    return ChoiceItem(row["ID"], country, text, OPTIONS, LABELS.index(label), half)
