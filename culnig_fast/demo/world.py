"""An invented world in BLEnD's format, for the embedded model to know imperfectly.

Countries carry BLEnD's names because the method groups by them. Everything said about them is made up by a
seeded generator: the answers are invented words, and which countries share answers is a choice made here
(`KIN`). Nothing in this world is a claim about any real culture.

An answer is two words, "gasate daponi", and both recur in other answers: only together do they say whose answer it
is. So a model has to put them together before it can know anything, in its first MLPs, as real models do with
names of several tokens. With answers of one token the embedding would know it all, and no MLP neuron would matter.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

COUNTRIES = (
    "UK",
    "US",
    "South_Korea",
    "Algeria",
    "China",
    "Indonesia",
    "Spain",
    "Iran",
    "Mexico",
    "Assam",
    "Greece",
    "Ethiopia",
    "Northern_Nigeria",
    "Azerbaijan",
    "North_Korea",
    "West_Java",
)
"""Spelt as in BLEnD's files."""

KIN = (
    ("UK", "US"),
    ("Spain", "Mexico"),
    ("Indonesia", "West_Java"),
    ("Iran", "Azerbaijan"),
    ("South_Korea", "North_Korea", "China"),
    ("Greece", "Algeria", "Ethiopia", "Northern_Nigeria"),
)
"""Groups whose members share answers more often than others do, by construction; Assam has no kin."""

KIN_SHARE = 0.6
"""Probability that a member takes its group's answer to a question rather than one of its own."""

TOPICS: dict[str, tuple[str, ...]] = {
    "Food": ("breakfast", "soup", "snack", "drink", "bread", "sauce", "dessert", "fruit"),
    "Work life": ("uniform", "tool", "contract", "workshop", "pause", "office", "wage", "greeting"),
    "Sport": ("ballgame", "race", "stadium", "trophy", "jersey", "cheer", "referee", "training"),
    "Education": ("textbook", "exam", "classroom", "lesson", "degree", "pupil", "library", "satchel"),
    "Family": ("nickname", "heirloom", "household", "wedding", "cradle", "dowry", "cousin", "supper"),
    "Holidays/Celebration/Leisure": (
        "festival",
        "lantern",
        "dance",
        "gift",
        "parade",
        "costume",
        "song",
        "outing",
    ),
}
"""Eight topics in each of BLEnD's topic groups."""

ANSWERS_PER_TOPIC = 8
"""Invented answers that the countries choose from, for each topic."""

FIRST_WORDS, SECOND_WORDS, PLAIN_WORDS = 32, 32, 64
"""Invented words that begin an answer, that end one, and that the ability tasks are about."""

ROWS_PER_FACT = 4
"""Multiple-choice rows of each (country, question); the method would keep up to five."""

LABELS = ("A", "B", "C", "D")

CULTURE_INSTRUCTION = (
    "Without any explanation, choose only one from the given alphabet choices(e.g., A, B, C). "
    'Provide as JSON format: {"answer_choice":""}'
)
ABILITY_INSTRUCTION = 'Reply with the letter as JSON: {"answer_choice":""}'

ABILITIES = ("pick", "membership", "equality")
"""General abilities: pick the named option, is a word in a list, are two lists equal."""

LONG_MEMBERSHIP = "membership_long"
"""Membership in longer lists than the model was trained on: an ability with room for improvement."""

_LIST_WORDS = {LONG_MEMBERSHIP: 8}
"""Words of a list, where it is not four."""


@dataclass(frozen=True)
class QuestionForm:
    """A question that is asked about every country."""

    id: str
    group: str
    topic: str

    def text(self, country: str) -> str:
        """The question about one country."""
        article = "the " if country in ("US", "UK") else ""
        return f"What is the usual {self.topic} in {article}{country.replace('_', ' ')}?"


@dataclass(frozen=True)
class World:
    """All facts of the invented world.

    Attributes:
        forms: the questions.
        lexicon: the invented answers of each topic.
        answers: (country, question id) → answer.
        plain: words of the ability tasks.
    """

    forms: tuple[QuestionForm, ...]
    lexicon: dict[str, tuple[str, ...]]
    answers: dict[tuple[str, str], str]
    plain: tuple[str, ...]

    def alternatives(self, country: str, form: QuestionForm) -> list[str]:
        """What other countries answer to the question, without this country's answer; sorted, no repeats."""
        own = self.answers[country, form.id]
        return sorted({self.answers[other, form.id] for other in COUNTRIES} - {own})


def make_world(seed: int = 0) -> World:
    """The world of a seed; the same on every machine."""
    source = random.Random(seed)
    words = _invented_words(source, FIRST_WORDS + SECOND_WORDS + PLAIN_WORDS)
    first, second = words[:FIRST_WORDS], words[FIRST_WORDS : FIRST_WORDS + SECOND_WORDS]
    phrases = [f"{a} {b}" for a in first for b in second]
    source.shuffle(phrases)
    lexicon: dict[str, tuple[str, ...]] = {}
    forms: list[QuestionForm] = []
    answers: dict[tuple[str, str], str] = {}
    for group, topics in TOPICS.items():
        for topic in topics:
            lexicon[topic] = tuple(phrases.pop() for _ in range(ANSWERS_PER_TOPIC))
            form = QuestionForm(f"{topic.capitalize()}-inv-00", group, topic)
            forms.append(form)
            while len({answers.get((country, form.id)) for country in COUNTRIES}) < len(LABELS):
                _answer_everywhere(form, lexicon[topic], source, answers)
    return World(tuple(forms), lexicon, answers, tuple(words[FIRST_WORDS + SECOND_WORDS :]))


def _answer_everywhere(
    form: QuestionForm, words: Sequence[str], source: random.Random, answers: dict[tuple[str, str], str]
) -> None:
    """Give every country its answer to one question; kin mostly the same."""
    for country in COUNTRIES:
        answers[country, form.id] = source.choice(words)
    for kin in KIN:
        shared = source.choice(words)
        for country in kin:
            if source.random() < KIN_SHARE:
                answers[country, form.id] = shared


def culture_options(world: World, country: str, form: QuestionForm, source: random.Random) -> list[str]:
    """The answer and three other countries' answers, in random order."""
    options = [world.answers[country, form.id], *source.sample(world.alternatives(country, form), 3)]
    source.shuffle(options)
    return options


def culture_prompt(country: str, form: QuestionForm, options: Sequence[str]) -> str:
    """The message of one multiple-choice row, worded as BLEnD's rows are."""
    lines = "\n".join(f"{label}. {option}" for label, option in zip(LABELS, options, strict=True))
    return f"{form.text(country)} {CULTURE_INSTRUCTION}\n\n{lines}\n\nAnswer:"


def blend_rows(world: World, seed: int = 1) -> list[dict[str, str]]:
    """Rows in BLEnD's schema, all cells text."""
    source = random.Random(seed)
    rows = []
    for form in world.forms:
        number = 0
        for country in COUNTRIES:
            for _ in range(ROWS_PER_FACT):
                options = culture_options(world, country, form, source)
                answer = LABELS[options.index(world.answers[country, form.id])]
                owners = [_an_owner(world, form, option, country) for option in options]
                rows.append(
                    {
                        "MCQID": f"{form.id}_{number}",
                        "ID": form.id,
                        "country": country,
                        "prompt": culture_prompt(country, form, options),
                        "choices": json.dumps(dict(zip(LABELS, options, strict=True)), indent=4),
                        "choice_countries": json.dumps(dict(zip(LABELS, owners, strict=True)), indent=4),
                        "answer_idx": answer,
                    }
                )
                number += 1
    return rows


def topics_csv(world: World) -> str:
    """The topics of all questions in the format of BLEnD's US_questions.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["", "ID", "Topic", "Source", "Question", "Translation"])
    for number, form in enumerate(world.forms):
        writer.writerow([number, form.id, form.group, "invented", form.text("US"), form.text("US")])
    return text.getvalue()


def country_rc_templates() -> list[dict[str, str]]:
    """Fifty CountryRC templates in words that a small model can learn; ten a half name a second country."""
    people = ("Mira", "Tomas", "Lena", "Oskar", "Nuri")
    deeds = (("moved", "move"), ("sailed", "sail"), ("flew", "fly"), ("walked", "walk"), ("drove", "drive"))
    templates = []
    for number in range(50):
        person = people[number % 5]
        past, verb = deeds[(number // 5) % 5]
        season = "spring" if number < 25 else "autumn"
        context = f"{person} {past} to {{country}} in {season}."
        if number % 5 in (1, 3):
            context = f"{person} left {{country_dummy}} and {past} to {{country}} in {season}."
        question = f"Where did {person} {verb} to?"
        templates.append({"id": str(number), "context": context, "question": question})
    return templates


def ability_row(task: str, world: World, source: random.Random) -> tuple[str, str]:
    """One random (message, answer label) of an ability task."""
    size = _LIST_WORDS.get(task, 4)
    words = source.sample(world.plain, size + 1)
    if task == "pick":
        options = words[:4]
        wanted = source.choice(options)
        question = f"Which letter stands before {wanted}?"
        answer = LABELS[options.index(wanted)]
    else:
        truth = source.random() < 0.5
        if task in ("membership", LONG_MEMBERSHIP):
            wanted = source.choice(words[:size]) if truth else words[size]
            question = f"Is {wanted} in the list {' '.join(words[:size])}?"
        else:
            copy = words[:3]
            if not truth:
                copy[source.randrange(3)] = words[4]
            question = f"Are the lists {' '.join(words[:3])} and {' '.join(copy)} the same?"
        # In one order, as the labels of real yes-or-no benchmarks mean the same in every question.
        options = ["yes", "no"]
        answer = LABELS[options.index("yes" if truth else "no")]
    lines = "\n".join(f"{label}. {option}" for label, option in zip(LABELS, options, strict=False))
    return f"{question} {ABILITY_INSTRUCTION}\n\n{lines}\n\nAnswer:", answer


def ability_rows(
    world: World, each: int = 300, seed: int = 2, tasks: Sequence[str] = ABILITIES
) -> list[dict[str, str]]:
    """`each` rows of every ability task, for evaluation."""
    source = random.Random(seed)
    rows = []
    for task in tasks:
        for number in range(each):
            prompt, answer = ability_row(task, world, source)
            rows.append({"id": f"{task}-{number}", "group": task, "prompt": prompt, "answer": answer})
    return rows


def training_rows(
    task: str, world: World, without: Collection[str], each: int = 4000, seed: int = 3
) -> list[dict[str, str]]:
    """`each` different rows of one ability task for training, none with a prompt of `without`."""
    source = random.Random(f"{seed} {task}")
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < each:
        prompt, answer = ability_row(task, world, source)
        if prompt not in without and prompt not in rows:
            rows[prompt] = {"id": f"train-{task}-{len(rows)}", "group": task, "prompt": prompt, "answer": answer}
    return list(rows.values())


def _an_owner(world: World, form: QuestionForm, option: str, country: str) -> str:
    if world.answers[country, form.id] == option:
        return country
    return next(other for other in COUNTRIES if world.answers[other, form.id] == option)


def _invented_words(source: random.Random, count: int) -> list[str]:
    words: set[str] = set()
    while len(words) < count:
        syllables = [source.choice("bdfgklmnprstvz") + source.choice("aeiou") for _ in range(3)]
        words.add("".join(syllables))
    ordered = sorted(words)
    source.shuffle(ordered)
    return ordered
