"""CountryRC: reading comprehension whose answer is a country that the passage names (CULNIG, section 4).

Neurons that score high here read country names; selection drops them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from culnig_fast.errors import CulnigError
from culnig_fast.files import read_json
from culnig_fast.questions import Question
from culnig_fast.tasks.base import check_split
from culnig_fast.tasks.countries import COUNTRIES, TARGET_COUNTRIES, country_name, in_prose
from culnig_fast.tasks.prompts import option_lines, render, seeded, shuffled

LETTERS, DIGITS = ("A", "B", "C", "D"), ("1", "2", "3", "4")

WORDINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ('Choose the option that answers the question. Reply with its letter as JSON: {"answer_choice":""}', LETTERS),
    ('Which option is right according to the text? Give only the letter, as JSON: {"answer_choice":""}', LETTERS),
    ('Choose the option that answers the question. Reply with its number as JSON: {"answer_choice":""}', DIGITS),
    ('Which option is right according to the text? Give only the number, as JSON: {"answer_choice":""}', DIGITS),
)
"""Instruction and option labels of the four prompt wordings."""


@dataclass(frozen=True)
class Template:
    """A passage with a `{country}` slot, at times a `{country_dummy}` too, and a question about it."""

    id: str
    context: str
    question: str


@dataclass(frozen=True)
class CountryRC:
    """Templates in file order: the first half is `neur`, the second `test`."""

    templates: tuple[Template, ...]
    countries: tuple[str, ...] = TARGET_COUNTRIES
    name: str = "country_rc"
    splits: tuple[str, ...] = ("all", "neur", "test")

    @classmethod
    def load(cls, source: str | Path | None = None, countries: Iterable[str] = TARGET_COUNTRIES) -> CountryRC:
        """Read templates.

        Args:
            source: a JSON list of objects with id, context and question, as the published program's `data.json`;
                None means the templates that come with this package.
            countries: the countries asked about, in any known spelling.

        Raises:
            CulnigError: a malformed file or template, or an unknown country.
        """
        if source is None:
            with resources.as_file(resources.files("culnig_fast.tasks") / "data" / "country_rc.json") as path:
                return cls(_parse(read_json(path), path), tuple(map(country_name, countries)))
        return cls(_parse(read_json(source), source), tuple(map(country_name, countries)))

    def questions(self, split: str, tokenizer: Any) -> list[Question]:
        """Templates × wordings × countries of `all`, `neur` or `test`.

        Raises:
            CulnigError: an unknown split.
        """
        check_split(split, self.splits, self.name)
        half = len(self.templates) // 2
        templates = {"neur": self.templates[:half], "test": self.templates[half:]}.get(split, self.templates)
        return [
            _question(template, wording, country, tokenizer)
            for template in templates
            for wording in range(len(WORDINGS))
            for country in self.countries
        ]


def _question(template: Template, wording: int, country: str, tokenizer: Any) -> Question:
    instruction, labels = WORDINGS[wording]
    key = f"{template.context}_{template.question}_{instruction}_{country}"
    others = [name for name in COUNTRIES if name != country]
    # A dummy country stands first among the distractors: it must be an option, or naming it would be no temptation.
    distractors = seeded(key).sample(others, 3)
    options = shuffled(key, [country, *distractors])
    context = template.context.replace("{country_dummy}", in_prose(distractors[0]))
    context = context.replace("{country}", in_prose(country))
    lines = option_lines(labels, [in_prose(option) for option in options])
    message = f"{context}\n\n{template.question}\n\n{lines}\n\n{instruction}"
    return Question(
        id=f"{template.id}/{wording}/{country}",
        group=country,
        prompt=render(tokenizer, message),
        answer=labels[options.index(country)],
    )


def _parse(value: Any, source: str | Path) -> tuple[Template, ...]:
    if not isinstance(value, list) or len(value) < 2:
        raise CulnigError(f"{source} is not a list of CountryRC templates; each needs id, context and question")
    templates: list[Template] = []
    seen: set[str] = set()
    for position, entry in enumerate(value):
        fields = [entry.get(name) if isinstance(entry, dict) else None for name in ("id", "context", "question")]
        if not all(isinstance(text, str) and text for text in fields):
            raise CulnigError(f"{source}: template {position} needs the texts id, context and question")
        template = Template(*fields)
        if "{country}" not in template.context:
            raise CulnigError(f"{source}: the context of template {template.id!r} has no {{country}} slot")
        if template.id in seen:
            raise CulnigError(f"{source}: template id {template.id!r} occurs twice")
        seen.add(template.id)
        templates.append(template)
    return tuple(templates)
