"""BLEnD: which rows are kept, what the control set is, and what a broken file says."""

from __future__ import annotations

import csv
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import fake_hub
import pytest
from real_data import real_file
from small_tokenizers import BOS_TEMPLATE, byte_level

from culnig_fast.errors import CulnigError
from culnig_fast.questions import encode_prompts
from culnig_fast.tasks.base import load_task
from culnig_fast.tasks.blend import HUB_CONFIG, HUB_ID, Blend

FORMAT = (
    "Without any explanation, choose only one from the given alphabet choices(e.g., A, B, C). "
    'Provide as JSON format: {"answer_choice":""}'
)
TOPICS = [
    ("Zz-en-01", "Food", "What is eaten\nin the morning?"),
    ("Zz-en-02", "Work life", "Until when, at the latest, is one at work?"),
    ("Zz-en-03", "Sport", "What is played?"),
    ("New-zz-04", "Education", "What is learnt first?"),
    ("Zz-en-05", "Family", "Who visits whom?"),
    ("Zz-en-06", "Holidays/Celebration/Leisure", 'What is "free time"?'),
]
TOKENIZER = byte_level()


def make_row(
    number: int,
    topic: int,
    country: str,
    options: tuple[str, ...] = ("None", "17", "08:00", "NA"),
    gold: int = 0,
) -> dict[str, str]:
    question_id, _, question = TOPICS[topic]
    letters = "ABCD"[: len(options)]
    choices = dict(zip(letters, options, strict=True))
    lines = "\n".join(f"{letter}. {option}" for letter, option in choices.items())
    origins = {letter: "dummy" if letter == "B" else country for letter in letters}
    return {
        "MCQID": f"{question_id}_{number}",
        "ID": question_id,
        "country": country,
        # Its own wording: not that of the topics file.
        "prompt": f"{question} In {country}, that is? {FORMAT}\n\n{lines}\n\nAnswer:",
        "choices": json.dumps(choices, indent=4, ensure_ascii=False),
        "choice_countries": json.dumps(origins, indent=4),
        "answer_idx": letters[gold],
    }


def make_rows() -> list[dict[str, str]]:
    """Seven rows of each of two pairs, interleaved and with gaps in their numbers, and one of six more."""
    unusual = ("not-applicable", "çay", "a, b", '"c"')
    rows = []
    for number in range(7):
        rows.append(make_row(40 - 5 * number, 0, "US", gold=number % 4))
        rows.append(make_row(100 + 3 * number, 3, "South_Korea", unusual, number % 4))
    rows += [make_row(7, topic, "Northern_Nigeria", gold=topic % 4) for topic in range(6)]
    return rows


def write_topics(folder: Path, topics: list[tuple[str, str, str]] | None = None) -> Path:
    path = folder / "US_questions.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["", "ID", "Topic", "Source", "Question", "Translation"])
        for i, (question_id, topic, question) in enumerate(TOPICS if topics is None else topics):
            writer.writerow([i, question_id, topic, "English", question + " Edited since.", question])
    return path


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load(folder: Path, rows: list[dict[str, str]], name: str = "rows.jsonl") -> Blend:
    return Blend.load(write_rows(folder / name, rows), write_topics(folder))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_the_first_five_rows_of_each_pair_are_kept_in_file_order(tmp_path: Path, name: str) -> None:
    task = load(tmp_path, make_rows(), name)
    ids = [question.id for question in task.questions("all", TOKENIZER)]
    expected = []
    for number in range(5):
        expected.append(f"USA/Zz-en-01_{40 - 5 * number}")
        expected.append(f"South Korea/New-zz-04_{100 + 3 * number}")
    expected += [f"Northern Nigeria/{question_id}_7" for question_id, _, _ in TOPICS]
    assert ids == expected


def test_the_halves_are_told_by_topic_and_join_to_all(tmp_path: Path) -> None:
    task = load(tmp_path, make_rows())
    neur, test = (task.questions(split, TOKENIZER) for split in ("neur", "test"))
    assert Counter(question.group for question in neur) == {"USA": 5, "Northern Nigeria": 3}
    assert Counter(question.group for question in test) == {"South Korea": 5, "Northern Nigeria": 3}
    everything = task.questions("all", TOKENIZER)
    assert sorted(q.id for q in everything) == sorted(q.id for q in [*neur, *test])


def test_prompt_and_answer_are_the_rows(tmp_path: Path) -> None:
    rows = [make_row(3, 0, "UK", ("çay", "None", "17", "08:00"), gold=2)]
    tokenizer = byte_level(chat_template=BOS_TEMPLATE)
    (question,) = load(tmp_path, rows).questions("neur", tokenizer)
    assert (question.group, question.answer) == ("UK", "C")
    assert f"<|im_start|>user\n{rows[0]['prompt']}<|im_end|>" in question.prompt
    assert question.prompt.endswith('</think>\n\n{"answer_choice":"')


def test_control_is_neur_without_the_question(tmp_path: Path) -> None:
    task = load(tmp_path, make_rows())
    neur, control = (task.questions(split, TOKENIZER) for split in ("neur", "control"))
    assert [(q.id, q.group, q.answer) for q in control] == [(q.id, q.group, q.answer) for q in neur]
    for asked, bare in zip(neur, control, strict=True):
        assert bare.prompt.startswith(FORMAT)
        assert asked.prompt.endswith(bare.prompt)
        assert len(asked.prompt) > len(bare.prompt)
        assert bare.prompt.endswith('\n\nAnswer:\n{"answer_choice":"')


def test_spellings_of_one_country_are_one_country(tmp_path: Path) -> None:
    rows = [make_row(i, 0, "US" if i % 2 else "United States") for i in range(8)]
    questions = load(tmp_path, rows).questions("all", TOKENIZER)
    assert [q.id for q in questions] == [f"USA/Zz-en-01_{i}" for i in range(5)]


def test_the_same_row_number_in_two_countries_is_two_questions(tmp_path: Path) -> None:
    rows = [make_row(1, 0, "US"), make_row(1, 0, "UK")]
    assert len(load(tmp_path, rows).questions("all", TOKENIZER)) == 2


def test_loading_is_the_same_every_time_and_leaves_the_global_state(tmp_path: Path) -> None:
    random.seed(1)
    expected = random.random()
    random.seed(1)
    first = load(tmp_path, make_rows()).questions("all", TOKENIZER)
    assert random.random() == expected
    assert load(tmp_path, make_rows()).questions("all", TOKENIZER) == first


def test_the_topics_file_beside_the_rows_is_found(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", make_rows())
    with pytest.raises(CulnigError, match=r"no US_questions\.csv beside .*rows\.jsonl"):
        Blend.load(path)
    topics = write_topics(tmp_path)
    assert Blend.load(path).rows == Blend.load(path, topics).rows
    assert load_task("blend", path, {"topics": topics}) == Blend.load(path)


def test_the_hub_gives_rows_and_topics(monkeypatch: Any) -> None:
    asked = []

    def load_dataset(name: str, config: str, *, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        if config == HUB_CONFIG:
            return datasets.Dataset.from_list(make_rows())
        return datasets.Dataset.from_list([{"ID": name, "Topic": topic} for name, topic, _ in TOPICS])

    fake_hub.answer(monkeypatch, load_dataset)
    assert len(Blend.load().rows) == 16
    assert sorted(asked) == [
        (HUB_ID, "multiple-choice-questions", "test"),
        (HUB_ID, "short-answer-questions", "US"),
    ]


def changed(**cells: str) -> Callable[[list[dict[str, str]]], None]:
    def apply(rows: list[dict[str, str]]) -> None:
        rows[0].update(cells)

    return apply


def without(column: str) -> Callable[[list[dict[str, str]]], None]:
    def apply(rows: list[dict[str, str]]) -> None:
        for row in rows:
            del row[column]

    return apply


BROKEN: dict[str, tuple[Callable[[list[dict[str, str]]], None], str]] = {
    "no column": (without("answer_idx"), r"no column answer_idx \(found: MCQID, ID, "),
    "no cell": (lambda rows: rows[3].pop("prompt") and None, "row 4 of .* no value in column prompt"),
    "unknown country": (changed(country="Atlantis"), "unknown country 'Atlantis'"),
    "no topic": (changed(ID="Zz-en-99"), "question Zz-en-99 .*USA/Zz-en-01_40.* has no topic"),
    "cut choices": (changed(choices='{"A": "x'), "USA/Zz-en-01_40 .*not JSON"),
    "choices no object": (changed(choices='["x"]'), "USA/Zz-en-01_40 needs choices as an object"),
    "one choice": (changed(choices='{"A": "None"}'), "USA/Zz-en-01_40 needs choices"),
    "empty option": (changed(choices='{"A": "None", "B": " "}'), "USA/Zz-en-01_40 has no text for choice B"),
    "option no text": (changed(choices='{"A": "None", "B": null}'), "no text for choice B"),
    "other option": (changed(choices='{"A": "None", "B": "18"}'), "does not show choice B, '18'"),
    "answer no letter": (changed(answer_idx="E"), "USA/Zz-en-01_40 has the answer 'E', .* A, B, C, D"),
    "empty answer": (changed(answer_idx=""), "USA/Zz-en-01_40 has the answer ''"),
    "no instruction": (
        changed(prompt="Pick.\nA. None\nB. 17\nC. 08:00\nD. NA\n"),
        "USA/Zz-en-01_40 lacks 'Without any explanation, choose only one'",
    ),
    "row twice": (lambda rows: rows.append(dict(rows[0])), "lists USA/Zz-en-01_40 twice"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_by_row(tmp_path: Path, case: str) -> None:
    change, message = BROKEN[case]
    rows = make_rows()
    change(rows)
    with pytest.raises(CulnigError, match=message):
        load(tmp_path, rows)


def test_a_repeated_row_is_refused_even_where_five_are_kept_already(tmp_path: Path) -> None:
    rows = make_rows()
    rows.append(dict(rows[12]))  # the seventh of its pair
    with pytest.raises(CulnigError, match="lists USA/Zz-en-01_10 twice"):
        load(tmp_path, rows)


def test_numbers_as_options_are_read_as_text(tmp_path: Path) -> None:
    row = make_row(0, 0, "US", ("17", "1.50"))
    row["choices"] = '{"A": 17, "B": 1.50}'
    assert load(tmp_path, [row]).questions("neur", TOKENIZER)[0].answer == "A"


@pytest.mark.parametrize(
    ("topics", "message"),
    [
        ([("Zz-en-01", "Weather", "x")], "question Zz-en-01 the unknown topic 'Weather'; .* Food"),
        ([("Zz-en-01", "Food", "x"), ("Zz-en-01", "Sport", "x")], "two topics, Food and Sport"),
        ([], "no rows"),
    ],
)
def test_a_broken_topics_file_is_refused(tmp_path: Path, topics: list[tuple[str, str, str]], message: str) -> None:
    path = write_rows(tmp_path / "rows.jsonl", make_rows())
    with pytest.raises(CulnigError, match=message):
        Blend.load(path, write_topics(tmp_path, topics))


def test_an_unknown_or_empty_split_is_refused(tmp_path: Path) -> None:
    task = load(tmp_path, [make_row(0, 0, "US")])
    with pytest.raises(CulnigError, match="blend has no split 'train'; choose from all, neur, control, test"):
        task.questions("train", TOKENIZER)
    with pytest.raises(CulnigError, match="split 'test' of blend is empty"):
        task.questions("test", TOKENIZER)


def test_the_real_file_has_its_counts() -> None:
    start = time.perf_counter()
    task = Blend.load(real_file("blend/blend_mcq.jsonl"), real_file("blend/US_questions.csv"))
    assert time.perf_counter() - start < 30
    questions = {split: task.questions(split, TOKENIZER) for split in task.splits}
    counts = {split: len(found) for split, found in questions.items()}
    assert counts == {"all": 27059, "neur": 14598, "control": 14598, "test": 12461}
    assert len({question.group for question in questions["neur"]}) == 16
    assert Counter(q.answer for q in questions["all"]) == {"A": 6387, "B": 6629, "C": 7072, "D": 6971}
    per_pair = Counter((row.country, row.id.rsplit("_", 1)[0]) for row in task.rows)
    assert len(per_pair) == 6091
    assert max(per_pair.values()) == 5
    assert all(q.prompt.startswith(FORMAT) for q in questions["control"])


def test_the_real_file_is_encoded_with_one_bos_a_prompt() -> None:
    task = Blend.load(real_file("blend/blend_mcq.jsonl"), real_file("blend/US_questions.csv"))
    tokenizer = byte_level(bos=True, eos=True, chat_template=BOS_TEMPLATE)
    encoded = encode_prompts(tokenizer, task.questions("test", tokenizer)[::97])
    assert all(row.count(tokenizer.bos_token_id) == 1 and row[0] == tokenizer.bos_token_id for row in encoded)
    assert not any(tokenizer.eos_token_id in row for row in encoded)
