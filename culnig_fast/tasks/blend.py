"""BLEnD multiple choice: everyday culture in 16 countries and regions (CULNIG, section 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from culnig_fast.errors import CulnigError
from culnig_fast.files import parse_json
from culnig_fast.questions import Question
from culnig_fast.tasks.base import Task
from culnig_fast.tasks.countries import country_name
from culnig_fast.tasks.prompts import render
from culnig_fast.tasks.rows import Row, is_file, read_rows, require_columns

HUB_ID, HUB_CONFIG, HUB_SPLIT = "nayeon212/BLEnD", "multiple-choice-questions", "test"
TOPICS_CONFIG, TOPICS_SPLIT = "short-answer-questions", "US"
TOPICS_FILE = "US_questions.csv"

NEUR_TOPICS = ("Food", "Work life", "Sport")
TEST_TOPICS = ("Education", "Family", "Holidays/Celebration/Leisure")

ROWS_PER_QUESTION = 5
"""Rows kept of each (country, question): the first in file order."""

INSTRUCTION = "Without any explanation, choose only one"
"""Where the question ends and the format instruction begins in every row's prompt."""

_COLUMNS = ("MCQID", "ID", "country", "prompt", "choices", "answer_idx")


@dataclass(frozen=True)
class BlendRow:
    """One multiple-choice row that is kept; `country` is the canonical name."""

    id: str
    country: str
    topic: str
    prompt: str
    control_prompt: str
    answer: str


@dataclass(frozen=True)
class Blend(Task):
    """The kept rows in file order.

    `neur` holds Food, Work life and Sport, `test` the other three topics, `control` the neur rows without
    their question. Groups are countries; a question's id is `country/MCQID`.
    """

    rows: tuple[BlendRow, ...]

    name: ClassVar[str] = "blend"
    splits: ClassVar[tuple[str, ...]] = ("all", "neur", "control", "test")
    hub: ClassVar[str | None] = HUB_ID
    files: ClassVar[Mapping[str, str]] = {"topics": f"{TOPICS_FILE} of BLEnD: the topic of each question ID"}

    @classmethod
    def load(cls, source: str | Path | None = None, topics: str | Path | None = None) -> Blend:
        """Read rows and topics.

        Args:
            source: a local file in the hub's schema, or a hub id; None means BLEnD's own.
            topics: `US_questions.csv` of BLEnD. None means the file of that name beside a local source, or
                the hub's own list of the same questions.

        Raises:
            CulnigError: a missing file or column, an unknown country or topic, a malformed or repeated row.
        """
        source = HUB_ID if source is None else source
        topic_of = read_topics(source, topics)
        rows = read_rows(source, config=HUB_CONFIG, split=HUB_SPLIT)
        require_columns(rows, _COLUMNS, source)
        kept: list[BlendRow] = []
        taken: Counter[tuple[str, str]] = Counter()
        seen: set[str] = set()
        for row in rows:
            country = country_name(row["country"])
            row_id = f"{country}/{row['MCQID']}"
            if row_id in seen:
                raise CulnigError(f"{source} lists {row_id} twice; are two versions of the file merged?")
            seen.add(row_id)
            pair = (country, row["ID"])
            taken[pair] += 1
            if taken[pair] <= ROWS_PER_QUESTION:
                kept.append(_parse(row, row_id, country, topic_of, source))
        return cls(tuple(kept))

    def _questions(self, split: str, tokenizer: Any) -> list[Question]:
        topics = {"all": NEUR_TOPICS + TEST_TOPICS, "test": TEST_TOPICS}.get(split, NEUR_TOPICS)
        return [
            Question(
                id=row.id,
                group=row.country,
                prompt=render(tokenizer, row.control_prompt if split == "control" else row.prompt),
                answer=row.answer,
            )
            for row in self.rows
            if row.topic in topics
        ]


def read_topics(source: str | Path, topics: str | Path | None) -> dict[str, str]:
    """Topic of each question ID; wordings are no key, for they were edited after the rows were made."""
    if topics is None and is_file(source):
        topics = Path(source).parent / TOPICS_FILE
        if not topics.is_file():
            raise CulnigError(f"no {TOPICS_FILE} beside {source}; give BLEnD's file of that name as topics")
    if topics is None:
        rows = read_rows(source, config=TOPICS_CONFIG, split=TOPICS_SPLIT)
        topics = source
    else:
        rows = read_rows(topics, config=TOPICS_CONFIG, split=TOPICS_SPLIT)
    require_columns(rows, ("ID", "Topic"), topics)
    topic_of: dict[str, str] = {}
    for row in rows:
        question_id, topic = row["ID"], row["Topic"].strip()
        if topic not in NEUR_TOPICS + TEST_TOPICS:
            raise CulnigError(
                f"{topics} gives question {question_id} the unknown topic {topic!r}; "
                f"the topics are {', '.join(NEUR_TOPICS + TEST_TOPICS)}"
            )
        if topic_of.setdefault(question_id, topic) != topic:
            raise CulnigError(
                f"{topics} gives question {question_id} two topics, {topic_of[question_id]} and {topic}; keep one"
            )
    return topic_of


def _parse(row: Row, row_id: str, country: str, topic_of: Mapping[str, str], source: str | Path) -> BlendRow:
    if row["ID"] not in topic_of:
        raise CulnigError(
            f"{source}: question {row['ID']} (row {row_id}) has no topic; is the topics file of this data?"
        )
    prompt, answer = row["prompt"], row["answer_idx"].strip()
    _check_choices(row["choices"], answer, prompt, f"{source}: row {row_id}")
    start = prompt.find(INSTRUCTION)
    if start < 0:
        raise CulnigError(
            f"{source}: the prompt of row {row_id} lacks {INSTRUCTION!r}, so the question cannot be cut off "
            "for the "
            "control set; is this BLEnD's multiple-choice file?"
        )
    return BlendRow(
        id=row_id,
        country=country,
        topic=topic_of[row["ID"]],
        prompt=prompt,
        control_prompt=prompt[start:],
        answer=answer,
    )


def _check_choices(text: str, answer: str, prompt: str, where: str) -> None:
    try:
        choices = parse_json(text, "no JSON", parse_int=str, parse_float=str)
    except CulnigError as error:
        raise CulnigError(f"{where} has choices that are not JSON ({error}); was the file cut off?") from error
    if not isinstance(choices, dict) or len(choices) < 2:
        raise CulnigError(f"{where} needs choices as an object of at least two, letter to text; it has {text!r:.80}")
    for letter, option in choices.items():
        if not isinstance(option, str) or not option.strip():
            raise CulnigError(f"{where} has no text for choice {letter}; is the file complete?")
        if f"{letter}. {option}" not in prompt:
            raise CulnigError(
                f"{where} does not show choice {letter}, {option!r}, in its prompt; are two versions of the "
                "file "
                "merged?"
            )
    if answer not in choices:
        raise CulnigError(f"{where} has the answer {answer!r}, which is none of its choices {', '.join(choices)}")
