"""CountryRC: the answer is always in the passage and among the options."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_data import real_file
from small_tokenizers import CHAT_TEMPLATE, byte_level

from culnig_fast.errors import CulnigError
from culnig_fast.tasks.countries import COUNTRIES, TARGET_COUNTRIES, country_name, in_prose
from culnig_fast.tasks.country_rc import COUNTRY, DUMMY, WORDINGS, CountryRC, Template
from culnig_fast.tasks.prompts import shuffled

TOKENIZER = byte_level()
OWN = CountryRC.load()


def write(folder: Path, templates: Any, name: str = "data.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(templates, ensure_ascii=False, indent=4), encoding="utf-8")
    return path


def make_templates(count: int = 4) -> list[dict[str, str]]:
    return [
        {
            "id": str(i),
            "context": f"Ana {i} left {DUMMY} for {COUNTRY}." if i % 2 else f"Zoë {i} is in {COUNTRY}.",
            "question": "Where is she?",
        }
        for i in range(count)
    ]


def options_of(prompt: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-D1-4])\. (.+)$", prompt, flags=re.MULTILINE))


def test_own_templates_are_enough_and_evenly_split() -> None:
    templates = OWN.templates
    assert len(templates) >= 52
    assert len(templates) % 2 == 0
    half = len(templates) // 2
    with_dummy = [DUMMY in template.context for template in templates]
    assert sum(with_dummy[:half]) == sum(with_dummy[half:]) >= 11
    assert len({template.context for template in templates}) == len(templates)
    assert len({template.question for template in templates}) == len(templates)
    assert sum(not (template.context + template.question).isascii() for template in templates) >= 3


def test_own_templates_read_as_sentences() -> None:
    for template in OWN.templates:
        assert template.context.endswith((".", "!"))
        assert template.question.endswith("?")
        assert template.context.count(COUNTRY) == 1
        # A name with its own article or a possessive would not fit every country.
        assert not re.search(r"\b(the|an?) \{|\}['’-]", template.context), template.context
        assert not any(name in template.context + template.question for name in COUNTRIES)


@pytest.mark.parametrize("split", ["neur", "test"])
def test_counts_and_balance(split: str) -> None:
    questions = OWN.questions(split, TOKENIZER)
    assert len(questions) == len(OWN.templates) // 2 * len(WORDINGS) * 8
    groups = Counter(question.group for question in questions)
    assert groups == dict.fromkeys(TARGET_COUNTRIES, len(questions) // 8)
    # Each place is gold in a quarter of the questions: 26 % of 416 is within 3 standard deviations (2.1 %).
    for labels in ("ABCD", "1234"):
        chosen = Counter(q.answer for q in questions if q.answer in labels)
        total = sum(chosen.values())
        assert all(abs(chosen[label] / total - 0.25) < 0.065 for label in labels), chosen


@pytest.mark.parametrize("position", range(0, 1600, 41))
def test_the_passage_names_the_gold_option_and_every_option_is_a_country(position: int) -> None:
    question = OWN.questions("all", TOKENIZER)[position]
    template = OWN.templates[int(question.id.split("/")[0])]
    options = options_of(question.prompt)
    assert len(set(options.values())) == len(options) == 4
    assert country_name(options[question.answer]) == question.group
    passage = question.prompt.split("\n\n")[0]
    named = [name for name in options.values() if re.search(rf"\b{name}\b", passage)]
    assert options[question.answer] in named
    assert "{" not in passage
    assert len(named) == 1 + (DUMMY in template.context)


def test_the_first_half_is_neur_and_the_second_test(tmp_path: Path) -> None:
    task = CountryRC.load(write(tmp_path, make_templates(5)))
    assert {q.id.split("/")[0] for q in task.questions("neur", TOKENIZER)} == {"0", "1"}
    assert {q.id.split("/")[0] for q in task.questions("test", TOKENIZER)} == {"2", "3", "4"}
    assert len(task.questions("all", TOKENIZER)) == 5 * 4 * 8


def test_the_order_of_options_is_that_of_the_documented_key(tmp_path: Path) -> None:
    task = CountryRC.load(write(tmp_path, make_templates()), ["Iran"])
    for question in task.questions("all", TOKENIZER):
        template_id, wording_name, country = question.id.split("/")
        template = task.templates[int(template_id)]
        wording = next(wording for wording in WORDINGS if wording.name == wording_name)
        key = f"{template.context}_{template.question}_{wording.instruction}_{country}"
        place = shuffled(key, range(4)).index(0)
        assert question.answer == wording.labels[place]


def test_the_dummy_does_not_tell_the_place_of_the_answer() -> None:
    """Drawn by the generator that shuffles, which country misleads would tell where the answer stands."""
    table = np.zeros((15, 4))
    for question in OWN.questions("all", TOKENIZER):
        options = [country_name(option) for option in options_of(question.prompt).values()]
        passage = question.prompt.split("\n\n")[0]
        others = [name for name in COUNTRIES if name != question.group]
        for dummy in (name for name in others if in_prose(name) in passage):
            table[others.index(dummy), options.index(question.group)] += 1
    assert table.sum() == 22 * 4 * 8
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    chi_squared = ((table - expected) ** 2 / expected).sum()
    # 42 degrees of freedom: above 76 once in a thousand times. Measured: 36, and 405 with one generator.
    assert chi_squared < 76


def test_the_wordings_share_their_options_and_differ_in_the_rest(tmp_path: Path) -> None:
    task = CountryRC.load(write(tmp_path, make_templates(2)), ["UK"])
    questions = task.questions("test", TOKENIZER)
    assert len({frozenset(options_of(q.prompt).values()) for q in questions}) == 1
    assert len({q.prompt for q in questions}) == 4
    assert [set(options_of(q.prompt)) for q in questions] == [set("ABCD")] * 2 + [set("1234")] * 2
    assert "Ana 1 left" in questions[0].prompt
    assert "for the UK." in questions[0].prompt


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ("{country} won. {country} lost, and {country} drew.", "The US won. The US lost, and the US drew."),
        ("He said “{country}.” {country} it was.", "He said “the US.” The US it was."),
    ],
)
def test_a_name_that_begins_a_sentence_is_capitalised(tmp_path: Path, context: str, expected: str) -> None:
    templates = [{"id": name, "context": context, "question": "Who?"} for name in "ab"]
    question = CountryRC.load(write(tmp_path, templates), ["US"]).questions("neur", TOKENIZER)[0]
    assert question.prompt.startswith(expected + "\n\nWho?")


def test_prompts_are_the_same_in_every_run_and_leave_the_global_state() -> None:
    random.seed(2)
    expected = random.random()
    random.seed(2)
    first = OWN.questions("neur", TOKENIZER)
    assert random.random() == expected
    assert CountryRC.load().questions("neur", TOKENIZER) == first
    chat = OWN.questions("neur", byte_level(chat_template=CHAT_TEMPLATE))
    assert [(q.id, q.answer) for q in chat] == [(q.id, q.answer) for q in first]
    assert chat[0].prompt.startswith("<|im_start|>user\n")


def test_countries_are_taken_in_any_spelling_and_once(tmp_path: Path) -> None:
    assert CountryRC.load(countries=["US", "West_Java", "USA"]).countries == ("USA", "West Java")
    with pytest.raises(CulnigError, match="Atlantis"):
        CountryRC.load(countries=["Atlantis"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"id": "1", "context": "No slot.", "question": "q?"}, "template '1' has no {country} slot"),
        ({"id": "1", "context": f"Only {DUMMY}.", "question": "q?"}, "template '1' has no {country} slot"),
        ({"id": "1", "context": f"{COUNTRY} and {{city}}", "question": "q?"}, "template '1' has {city}"),
        ({"id": "1", "context": f"In {COUNTRY}", "question": f"In {COUNTRY}?"}, "template '1' has {country}"),
        ({"id": "0", "context": f"In {COUNTRY}", "question": "q?"}, "template id '0' occurs twice"),
        ({"id": "1", "context": f"In {COUNTRY}", "question": " "}, "template '1' has an empty"),
        ({"id": "1", "context": f"In {COUNTRY}"}, "row 2 .* no value in column question"),
        ({"id": "1", "context": f"In {COUNTRY}", "question": None}, "row 2 .* no value in column question"),
        ("text", "holds a str"),
    ],
)
def test_a_broken_template_is_refused_by_id(tmp_path: Path, entry: Any, message: str) -> None:
    path = write(tmp_path, [make_templates(1)[0], entry])
    with pytest.raises(CulnigError, match=message.replace("{", r"\{").replace("}", r"\}")):
        CountryRC.load(path)


def test_one_template_cannot_be_halved(tmp_path: Path) -> None:
    with pytest.raises(CulnigError, match="single template"):
        CountryRC.load(write(tmp_path, make_templates(1)))


def test_there_is_no_control_split() -> None:
    with pytest.raises(CulnigError, match="country_rc has no split 'control'; choose from all, neur, test"):
        OWN.questions("control", TOKENIZER)


def test_the_authors_file_has_its_counts() -> None:
    task = CountryRC.load(real_file("countryrc/data.json"))
    assert len(task.templates) == 50
    assert isinstance(task.templates[0], Template)
    for split in ("neur", "test"):
        questions = task.questions(split, TOKENIZER)
        assert len(questions) == 800
        assert Counter(q.group for q in questions) == dict.fromkeys(TARGET_COUNTRIES, 100)
        for question in questions:
            passage = question.prompt.split("\n\n")[0]
            assert in_prose(question.group).lower() in passage.lower()
            assert "{" not in passage
