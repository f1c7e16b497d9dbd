"""Four wordings of one multiple-choice item: two lettered, two numbered, as questions with ids of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from culnig_fast.questions import Question
from culnig_fast.tasks.prompts import option_lines, render, seeded

LETTERS = ("A", "B", "C", "D", "E")
NUMBERS = ("1", "2", "3", "4", "5")


@dataclass(frozen=True)
class Wording:
    """One way to put a question: a name for ids, the instruction, the option labels (as many as needed are used)."""

    name: str
    instruction: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class ChoiceItem:
    """One item of a benchmark before it is worded.

    Attributes:
        id: unique within the benchmark.
        group: what scores are summed under.
        text: everything above the options.
        options: in file order; two may be equal.
        gold: index of the right one.
        half: the split that it is in, `neur` or `test`.
    """

    id: str
    group: str
    text: str
    options: tuple[str, ...]
    gold: int
    half: str = "test"


def four_wordings(first: str, second: str) -> tuple[Wording, ...]:
    """Two instructions, each with letters and with numbers; `<label>` in them becomes `letter` or `number`."""
    kinds = (("letters", "letter", LETTERS), ("numbers", "number", NUMBERS))
    return tuple(
        Wording(f"{kind}-{number}", text.replace("<label>", noun) + ' as JSON: {"answer_choice":""}', labels)
        for kind, noun, labels in kinds
        for number, text in enumerate((first, second), 1)
    )


def worded(items: Iterable[ChoiceItem], wordings: Sequence[Wording], tokenizer: Any) -> list[Question]:
    """Every item in every wording; the id is `item/wording`.

    Options are shuffled by the key `{id}_{instruction}` (CULNIG, section 4). Places are shuffled and not texts, so
    the gold option stays the file's where another reads the same.
    """
    return [_question(item, wording, tokenizer) for item in items for wording in wordings]


def first_halves(cells: Sequence[Hashable]) -> list[str]:
    """`neur` for the first n // 2 items of each cell in the order given, `test` for the rest."""
    sizes, seen = Counter(cells), Counter[Hashable]()
    halves = []
    for cell in cells:
        halves.append("neur" if seen[cell] < sizes[cell] // 2 else "test")
        seen[cell] += 1
    return halves


def _question(item: ChoiceItem, wording: Wording, tokenizer: Any) -> Question:
    order = _shuffled_places(f"{item.id}_{wording.instruction}", len(item.options))
    labels = wording.labels[: len(order)]
    lines = option_lines(labels, [item.options[place] for place in order])
    return Question(
        id=f"{item.id}/{wording.name}",
        group=item.group,
        prompt=render(tokenizer, f"{item.text}\n\n{lines}\n\n{wording.instruction}"),
        answer=labels[order.index(item.gold)],
    )


def _shuffled_places(key: str, count: int) -> list[int]:
    places = list(range(count))
    seeded(key).shuffle(places)
    return places
