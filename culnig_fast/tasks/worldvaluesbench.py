"""WorldValuesBench: which answer most people of a country gave to a survey question (CULNIG, section 8)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from culnig_fast.errors import CulnigError
from culnig_fast.files import read_json
from culnig_fast.questions import Question
from culnig_fast.tasks.base import Task
from culnig_fast.tasks.countries import COUNTRIES, country_name, in_list, place_name
from culnig_fast.tasks.prompts import render
from culnig_fast.tasks.wvs_tables import AnswerCounts, count_answers

VALUES, DEMOGRAPHICS = "full_value_qa.tsv", "full_demographic_qa.tsv"
METADATA, CODEBOOK = "question_metadata.json", "codebook.json"

LEAST_ANSWERS = 10
"""A country's question with fewer answers is left out."""

NEUR_QUESTIONS = 40
"""Questions a country, those that set it apart most, that find neurons."""

GREATEST_ANSWER = 99
"""A prediction is read with at most two digits."""

LAST_QUESTION = 259
"""The survey's value questions are Q1…Q259, some numbers missing; variants such as Q234A are not among them."""

_FORMAT = ' as JSON: {"answer_choice":""}'
WORDINGS = {
    "scale-1": f"Which answer do most people there give? Reply with its number alone,{_FORMAT}",
    "scale-2": f"Name the answer that is most common in that country. Give nothing but the number,{_FORMAT}",
    "scale-3": f"Answer as the majority of its people would. Reply with a number of the scale alone,{_FORMAT}",
    "scale-4": f"On the scale of the question, where do most people of the country stand? Give the number,{_FORMAT}",
}


@dataclass(frozen=True)
class SurveyItem:
    """One question to one country; `low` and `high` bound its scale, `majority` is the most frequent answer."""

    id: str
    country: str
    text: str
    low: int
    high: int
    majority: int
    half: str


@dataclass(frozen=True)
class WorldValuesBench(Task):
    """Per country the 40 questions whose answers differ most from everybody's are `neur`, the rest `test`.

    Groups are countries; a question's id is `country/question/wording`. A majority answer of 10 is no single token
    under tokenizers that split digits: such questions are unusable there, and counted.
    """

    items: tuple[SurveyItem, ...]
    off_scale: int = 0
    _by_id: Mapping[str, SurveyItem] = field(default_factory=dict, repr=False, compare=False)

    name: ClassVar[str] = "worldvaluesbench"
    splits: ClassVar[tuple[str, ...]] = ("all", "neur", "test")
    wordings_each: ClassVar[int] = len(WORDINGS)
    files: ClassVar[Mapping[str, str]] = {
        "demographics": f"{DEMOGRAPHICS} of WorldValuesBench: the country of each participant",
        "metadata": f"{METADATA} of WorldValuesBench: wording and scale of each question",
        "codebook": f"{CODEBOOK} of WorldValuesBench: what each value means (optional)",
    }

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_id", {item.id: item for item in self.items})

    @classmethod
    def load(
        cls,
        source: str | Path | None = None,
        demographics: str | Path | None = None,
        metadata: str | Path | None = None,
        codebook: str | Path | None = None,
        countries: Iterable[str] = COUNTRIES,
    ) -> WorldValuesBench:
        """Read the tables and choose questions.

        Args:
            source: `full_value_qa.tsv` (csv and parquet too), or a folder somewhere under which all files are.
            demographics, metadata, codebook: the other files; None looks for them by name beside and under the
                source's folder. Without a codebook only the ends of a scale are named, as the questions do.
            countries: those asked about, in any spelling, where the survey has them; it has no Spain.

        Raises:
            CulnigError: no source (the survey's terms keep its answers off the hub), a missing file, question or
                column, none of the countries among the participants.
        """
        if source is None:
            raise CulnigError(
                f"the answers of WorldValuesBench are on no hub; give the folder with its {VALUES}, {DEMOGRAPHICS} "
                f"and {METADATA}"
            )
        source = Path(source)
        folder = source if source.is_dir() else source.parent
        values = _find(folder, VALUES) if source.is_dir() else source
        asked = _questions_of(Path(metadata) if metadata is not None else _find(folder, METADATA))
        meanings = _meanings(Path(codebook) if codebook is not None else _found(folder, CODEBOOK))
        scales = {name: (low, high) for name, (_, low, high) in asked.items()}
        people = Path(demographics) if demographics is not None else _find(folder, DEMOGRAPHICS)
        table = count_answers(values, people, scales)
        wanted = {country_name(name) for name in countries}
        texts = {name: _text(name, *asked[name], meanings) for name in asked}
        items = tuple(_choose(table, scales, texts, wanted))
        if not items:
            raise CulnigError(
                f"none of {', '.join(sorted(wanted))} has {LEAST_ANSWERS} answers to a question in {values}; "
                "check the tables and the countries"
            )
        return cls(items, table.off_scale)

    def score(self, question_id: str, answer: str, prediction: str) -> float:
        """(1 − |pred − gold| / max(|min − gold|, |max − gold|)) × 100; 0 for what is no number of the scale."""
        item = self._by_id.get(question_id.rpartition("/")[0])
        if item is None:
            raise CulnigError(f"{question_id!r} is no question of this WorldValuesBench; evaluate the task anew")
        text = prediction.strip()
        if not re.fullmatch(r"[0-9]{1,2}", text) or not item.low <= int(text) <= item.high:
            return 0.0
        gold = int(answer)
        farthest = max(abs(item.low - gold), abs(item.high - gold))
        return (1 - abs(int(text) - gold) / farthest) * 100

    def notes(self) -> tuple[str, ...]:
        """The answers off their scale, where there are any."""
        if not self.off_scale:
            return ()
        return (f"{self.off_scale:,} answers are off their question's scale and were left out",)

    def _questions(self, split: str, tokenizer: Any) -> list[Question]:
        return [
            Question(
                f"{item.id}/{name}",
                item.country,
                render(tokenizer, f"Country: {in_list(item.country)}\n\n{item.text}\n\n{instruction}"),
                str(item.majority),
            )
            for item in self.items
            if split in ("all", item.half)
            for name, instruction in WORDINGS.items()
        ]


def divergence(country: np.ndarray, everybody: np.ndarray) -> float:
    """KL(country ‖ all) in nats of two arrays of counts; every value that the country gave, somebody gave."""
    p, q = country / country.sum(), everybody / everybody.sum()
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())


def _choose(
    table: AnswerCounts, scales: Mapping[str, tuple[int, int]], texts: Mapping[str, str], wanted: set[str]
) -> Iterable[SurveyItem]:
    for row, spelling in enumerate(table.countries):
        country = place_name(spelling)
        if country not in wanted:
            continue
        asked = [name for name in scales if table.counts[name][row].sum() >= LEAST_ANSWERS]
        # Stable: of equal divergences the earlier question comes first.
        asked.sort(key=lambda name: -divergence(table.counts[name][row], table.counts[name].sum(0)))
        for place, name in enumerate(asked):
            low, high = scales[name]
            yield SurveyItem(
                id=f"{country}/{name}",
                country=country,
                text=texts[name],
                low=low,
                high=high,
                majority=low + int(table.counts[name][row].argmax()),  # of a tie, the lowest
                half="neur" if place < NEUR_QUESTIONS else "test",
            )


def _found(folder: Path, name: str) -> Path | None:
    for candidate in (folder / name, folder.parent / name, *sorted(folder.rglob(name))):
        if candidate.is_file():
            return candidate
    return None


def _find(folder: Path, name: str) -> Path:
    path = _found(folder, name)
    if path is None:
        raise CulnigError(f"no {name} in or under {folder}; name the file of WorldValuesBench")
    return path


def _questions_of(path: Path) -> dict[str, tuple[str, int, int]]:
    """Question → its wording and the ends of its scale, in the survey's order."""
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise CulnigError(f"{path} is not an object of questions; is it WorldValuesBench's {METADATA}?")
    found: dict[str, tuple[str, int, int]] = {}
    for number in range(1, LAST_QUESTION + 1):
        entry = entries.get(f"Q{number}")
        if not isinstance(entry, dict) or entry.get("use_case") != "value":
            continue
        try:
            low, high = int(entry["answer_scale_min"]), int(entry["answer_scale_max"])
            text = str(entry["question"]).strip()
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CulnigError(f"{path}: question Q{number} lacks a wording or integer scale ({error!r})") from error
        if not text or not 0 <= low < high <= GREATEST_ANSWER:
            raise CulnigError(
                f"{path}: question Q{number} has no wording, or {low}…{high} is no scale within 0…{GREATEST_ANSWER}"
            )
        found[f"Q{number}"] = (text, low, high)
    if not found:
        raise CulnigError(f"{path} has no value question Q1…Q{LAST_QUESTION}; is it WorldValuesBench's {METADATA}?")
    return found


def _meanings(path: Path | None) -> dict[str, dict[str, str]]:
    """Question → value → what it means; empty without a codebook."""
    if path is None:
        return {}
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise CulnigError(f"{path} is not an object of questions; is it WorldValuesBench's {CODEBOOK}?")
    return {
        name: {str(value): str(text) for value, text in entry["choices"].items()}
        for name, entry in entries.items()
        if isinstance(entry, dict) and isinstance(entry.get("choices"), dict)
    }


def _text(name: str, question: str, low: int, high: int, meanings: Mapping[str, Mapping[str, str]]) -> str:
    """The question, and what its values mean where the codebook names every one of them."""
    choices = meanings.get(name, {})
    values = [str(value) for value in range(low, high + 1)]
    if not all(choices.get(value, value) != value for value in values):
        return question
    # One codebook entry orders its values otherwise than the question does; the question's own ends decide.
    if f"{low} meaning '{choices[values[0]]}'" not in question:
        return question
    return question + "\n\n" + "\n".join(f"{value}. {choices[value]}" for value in values)
