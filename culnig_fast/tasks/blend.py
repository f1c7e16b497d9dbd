"""BLEnD multiple choice: everyday culture in 16 countries and regions (CULNIG, section 4)."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from culnig_fast.errors import CulnigError
from culnig_fast.questions import Question
from culnig_fast.tasks.base import check_split, read_rows, require_columns
from culnig_fast.tasks.countries import country_name
from culnig_fast.tasks.prompts import render

HUB_ID, HUB_CONFIG, HUB_SPLIT = "nayeon212/BLEnD", "multiple-choice-questions", "test"

NEUR_TOPICS = ("Food", "Work life", "Sport")
TEST_TOPICS = ("Education", "Family", "Holidays/Celebration/Leisure")

ROWS_PER_QUESTION = 5
"""Rows kept of each (country, question): the first in file order."""

INSTRUCTION = "Without any explanation, choose only one"
"""Where the question ends and the format instruction begins in every row's prompt."""

_COLUMNS = ("MCQID", "ID", "country", "prompt", "choices", "answer_idx")


@dataclass(frozen=True)
class BlendRow:
    """One multiple-choice row that is kept."""

    id: str
    country: str
    topic: str
    prompt: str
    control_prompt: str
    answer: str


@dataclass(frozen=True)
class Blend:
    """The kept rows in file order; `neur` and `control` are the identification half, `test` the other."""

    rows: tuple[BlendRow, ...]
    name: str = "blend"
    splits: tuple[str, ...] = ("all", "neur", "control", "test")

    @classmethod
    def load(cls, source: str | Path | None, topics: str | Path) -> Blend:
        """Read rows and topics.

        Args:
            source: a local file in the hub's schema, or a hub id; None means BLEnD's own.
            topics: `US_questions.csv` of BLEnD, which gives each question ID its topic.

        Raises:
            CulnigError: a missing file or column, an unknown country or topic, a malformed or repeated row.
        """
        source = HUB_ID if source is None else source
        topic_of = _read_topics(topics)
        rows = read_rows(source, config=HUB_CONFIG, split=HUB_SPLIT)
        require_columns(rows, _COLUMNS, source)
        kept: list[BlendRow] = []
        taken: Counter[tuple[str, str]] = Counter()
        seen: set[str] = set()
        for row in rows:
            pair = (row["country"], row["ID"])
            if taken[pair] == ROWS_PER_QUESTION:
                continue
            taken[pair] += 1
            parsed = _parse(row, topic_of, source)
            if parsed.id in seen:
                raise CulnigError(f"{source} lists {parsed.id} twice; are two versions of the file merged?")
            seen.add(parsed.id)
            kept.append(parsed)
        return cls(tuple(kept))

    def questions(self, split: str, tokenizer: Any) -> list[Question]:
        """Questions of `all`, `neur`, `control` (the neur rows without their question) or `test`.

        Raises:
            CulnigError: an unknown split.
        """
        check_split(split, self.splits, self.name)
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


def _read_topics(path: str | Path) -> dict[str, str]:
    rows = read_rows(path)
    require_columns(rows, ("ID", "Topic"), path)
    topics = {row["ID"].strip(): row["Topic"].strip() for row in rows}
    for question_id, topic in topics.items():
        if topic not in NEUR_TOPICS + TEST_TOPICS:
            raise CulnigError(
                f"{path} gives question {question_id} the unknown topic {topic!r}; "
                f"the topics are {', '.join(NEUR_TOPICS + TEST_TOPICS)}"
            )
    return topics


def _parse(row: dict[str, str], topic_of: dict[str, str], source: str | Path) -> BlendRow:
    name = row["MCQID"]
    if row["ID"] not in topic_of:
        raise CulnigError(f"{source}: question {row['ID']} (row {name}) has no topic; is the topics file of this data?")
    try:
        choices = json.loads(row["choices"])
    except json.JSONDecodeError as error:
        raise CulnigError(f"{source}: the choices of row {name} are not JSON ({error})") from error
    if not isinstance(choices, dict) or row["answer_idx"] not in choices:
        raise CulnigError(
            f"{source}: the answer {row['answer_idx']!r} of row {name} is none of its choices {list(choices)}"
        )
    start = row["prompt"].find(INSTRUCTION)
    if start < 0:
        raise CulnigError(
            f"{source}: the prompt of row {name} lacks {INSTRUCTION!r}, so the question cannot be cut off for the "
            "control set; is this BLEnD's multiple-choice file?"
        )
    country = country_name(row["country"])
    return BlendRow(
        id=name,
        country=country,
        topic=topic_of[row["ID"]],
        prompt=row["prompt"],
        control_prompt=row["prompt"][start:],
        answer=row["answer_idx"],
    )
