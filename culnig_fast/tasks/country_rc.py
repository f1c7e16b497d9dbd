"""CountryRC: reading comprehension whose answer is a country that the passage names (CULNIG, section 4).

Neurons that score high here read country names; selection drops them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from culnig_fast.errors import CulnigError
from culnig_fast.questions import Question
from culnig_fast.tasks.base import Task
from culnig_fast.tasks.countries import COUNTRIES, TARGET_COUNTRIES, country_name, in_list, in_prose
from culnig_fast.tasks.prompts import option_lines, render, seeded, shuffled
from culnig_fast.tasks.rows import Row, read_rows, require_columns
from culnig_fast.tasks.wordings import Wording

COUNTRY, DUMMY = "{country}", "{country_dummy}"


WORDINGS = (
    Wording(
        "letters-1",
        'Choose the option that answers the question. Reply with its letter as JSON: {"answer_choice":""}',
        ("A", "B", "C", "D"),
    ),
    Wording(
        "letters-2",
        'Which option is right according to the text? Give only the letter, as JSON: {"answer_choice":""}',
        ("A", "B", "C", "D"),
    ),
    Wording(
        "numbers-1",
        'Choose the option that answers the question. Reply with its number as JSON: {"answer_choice":""}',
        ("1", "2", "3", "4"),
    ),
    Wording(
        "numbers-2",
        'Which option is right according to the text? Give only the number, as JSON: {"answer_choice":""}',
        ("1", "2", "3", "4"),
    ),
)


@dataclass(frozen=True)
class Template:
    """A passage with a `{country}` slot, at times a `{country_dummy}` too, and a question about it."""

    id: str
    context: str
    question: str


@dataclass(frozen=True)
class CountryRC(Task):
    """Templates in file order: the first half is `neur`, the second `test`.

    Groups are countries; a question's id is `template/wording/country`.
    """

    templates: tuple[Template, ...]
    countries: tuple[str, ...] = TARGET_COUNTRIES

    name: ClassVar[str] = "country_rc"
    splits: ClassVar[tuple[str, ...]] = ("all", "neur", "test")
    wordings_each: ClassVar[int] = len(WORDINGS)

    @classmethod
    def load(cls, source: str | Path | None = None, countries: Iterable[str] = TARGET_COUNTRIES) -> CountryRC:
        """Read templates.

        Args:
            source: a file with id, context and question in each row, as the published program's `data.json`;
                None means the templates that come with this package.
            countries: the countries asked about, in any known spelling.

        Raises:
            CulnigError: a malformed file or template, or an unknown country.
        """
        names = tuple(dict.fromkeys(map(country_name, countries)))
        if source is not None:
            return cls(_parse(read_rows(source), source), names)
        with resources.as_file(resources.files("culnig_fast.tasks") / "data" / "country_rc.json") as path:
            return cls(_parse(read_rows(path), path.name), names)

    def _questions(self, split: str, tokenizer: Any) -> list[Question]:
        half = len(self.templates) // 2
        templates = {"neur": self.templates[:half], "test": self.templates[half:]}.get(split, self.templates)
        return [
            _question(template, wording, country, tokenizer)
            for template in templates
            for wording in WORDINGS
            for country in self.countries
        ]


def _question(template: Template, wording: Wording, country: str, tokenizer: Any) -> Question:
    # The draw has a key of its own: from one key, the first distractor would tell the gold option's place.
    # Without the instruction in it, the four wordings differ in nothing but wording and order.
    others = [name for name in COUNTRIES if name != country]
    draw = f"{template.context}_{template.question}_{country}"
    distractors = seeded(draw).sample(others, len(wording.labels) - 1)
    key = f"{template.context}_{template.question}_{wording.instruction}_{country}"
    options = shuffled(key, [country, *distractors])
    # The dummy country is an option, or naming it would mislead nobody.
    context = _fill(_fill(template.context, DUMMY, distractors[0]), COUNTRY, country)
    lines = option_lines(wording.labels, [in_list(option) for option in options])
    message = f"{context}\n\n{template.question}\n\n{lines}\n\n{wording.instruction}"
    return Question(
        id=f"{template.id}/{wording.name}/{country}",
        group=country,
        prompt=render(tokenizer, message),
        answer=wording.labels[options.index(country)],
    )


def _fill(context: str, slot: str, country: str) -> str:
    """Put a country into its slots, with the article it takes, capitalised where a sentence begins."""
    name = in_prose(country)
    opening = rf"(^|[.!?]['\"”’)]*\s+){re.escape(slot)}"
    context = re.sub(opening, lambda match: match.group(1) + name[0].upper() + name[1:], context)
    return context.replace(slot, name)


def _parse(rows: list[Row], source: str | Path) -> tuple[Template, ...]:
    require_columns(rows, ("id", "context", "question"), source)
    if len(rows) < 2:
        raise CulnigError(f"{source} has a single template; two halves need at least two")
    templates: dict[str, Template] = {}
    for row in rows:
        template = Template(row["id"], row["context"].strip(), row["question"].strip())
        if not (template.id and template.context and template.question):
            raise CulnigError(f"{source}: template {template.id!r} has an empty id, context or question; fill it")
        if template.id in templates:
            raise CulnigError(f"{source}: template id {template.id!r} occurs twice; ids must be unique")
        slots = set(re.findall(r"\{[^{}]*\}", template.context))
        if COUNTRY not in slots:
            raise CulnigError(f"{source}: the context of template {template.id!r} has no {COUNTRY} slot; add it")
        unknown = slots - {COUNTRY, DUMMY} | set(re.findall(r"\{[^{}]*\}", template.question))
        if unknown:
            raise CulnigError(
                f"{source}: template {template.id!r} has {', '.join(sorted(unknown))}, which nothing fills; "
                "only a "
                f"context has slots, {COUNTRY} and {DUMMY}"
            )
        templates[template.id] = template
    return tuple(templates.values())
