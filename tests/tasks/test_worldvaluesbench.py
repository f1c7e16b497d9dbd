"""WorldValuesBench on tables of our own: choice of questions, majority, scale, score, and the traps of the format."""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_data import real_file
from small_tokenizers import byte_level

from culnig_fast.errors import CulnigError
from culnig_fast.questions import split_usable
from culnig_fast.tasks.worldvaluesbench import WorldValuesBench, divergence

TOKENIZER = byte_level()
COUNTRIES = {"Great Britain": 30, "Northern Ireland": 12, "United States": 25, "Iran": 9}


def make_metadata(count: int = 45) -> dict[str, Any]:
    """Q1…; of three in turn one on 1–4, one 0–2, one 1–10; and entries that are no question of the benchmark."""
    scales = [(1, 4), (0, 2), (1, 10)]
    found: dict[str, Any] = {
        name: {
            "question": "Who?",
            "use_case": case,
            "answer_scale_min": low,
            "answer_scale_max": high,
        }
        for name, case, low, high in (
            ("B_COUNTRY", "demographic", "", ""),
            ("Q288", "demographic", 1, 10),
            ("Q234A", "value", 1, 5),
        )
    }
    for i in range(1, count + 1):
        if i == 42:
            continue  # numbers are missing in the survey too
        low, high = scales[i % 3]
        text = f"On a scale of {low} to {high}, {low} meaning 'least {i}' and {high} meaning 'most {i}', how much?"
        found[f"Q{i}"] = {"question": text, "use_case": "value", "answer_scale_min": low, "answer_scale_max": high}
    return found


def write_tables(folder: Path, seed: int = 0, bom: bool = False) -> dict[tuple[str, str], list[int]]:
    """Both tables and the metadata; returns the answers by (country, question)."""
    source = random.Random(seed)
    metadata = make_metadata()
    names = [name for name, entry in metadata.items() if entry["use_case"] == "value"]
    answers: dict[tuple[str, str], list[int]] = defaultdict(list)
    people, values, number = ["A_YEAR\tD_INTERVIEW\tB_COUNTRY"], ["\t".join(["D_INTERVIEW", *names])], 0
    for country, size in COUNTRIES.items():
        for _ in range(size):
            number += 1
            people.append(f"2020\t{826070000 + number}\t{country}")
            cells = []
            for name in names:
                low, high = metadata[name]["answer_scale_min"], metadata[name]["answer_scale_max"]
                skew = (hash_of(country) + int("".join(filter(str.isdigit, name)))) % (high - low + 1)
                value = low + skew if source.random() < 0.5 else source.randint(low, high)
                if source.random() < 0.1 or (name == "Q7" and country == "United States" and number % 3):
                    cells.append("")
                    continue
                cells.append(str(value))
                answers[country, name].append(value)
            values.append("\t".join([str(826070000 + number), *cells]))
    folder.mkdir(exist_ok=True)
    (folder / "full").mkdir(exist_ok=True)
    encoding = "utf-8-sig" if bom else "utf-8"
    (folder / "full" / "full_demographic_qa.tsv").write_text("\n".join(people) + "\n", encoding=encoding)
    (folder / "full" / "full_value_qa.tsv").write_text("\n".join(values) + "\n", encoding=encoding)
    (folder / "question_metadata.json").write_text(json.dumps(metadata))
    return answers


def hash_of(text: str) -> int:
    return sum(map(ord, text))


def plain_choice(answers: dict[tuple[str, str], list[int]], country: str) -> list[tuple[str, int]]:
    """(question, majority) in order of divergence, counted with dictionaries and logarithms alone."""
    ranked = []
    for name in make_metadata():
        mine = answers.get((country, name), [])
        if not name.removeprefix("Q").isdigit() or name == "Q288" or len(mine) < 10:
            continue
        everybody = Counter(value for (_, other), given in answers.items() if other == name for value in given)
        counts, total = Counter(mine), sum(everybody.values())
        kl = sum(
            counts[v] / len(mine) * math.log((counts[v] / len(mine)) / (everybody[v] / total)) for v in sorted(counts)
        )
        majority = min(v for v in counts if counts[v] == max(counts.values()))
        ranked.append((kl, name, majority))
    ranked.sort(key=lambda entry: -entry[0])
    return [(name, majority) for _, name, majority in ranked]


@pytest.mark.parametrize("bom", [False, True])
def test_questions_split_and_majority_equal_a_plain_count(tmp_path: Path, bom: bool) -> None:
    answers = write_tables(tmp_path, bom=bom)
    task = WorldValuesBench.load(tmp_path)
    assert task == WorldValuesBench.load(tmp_path / "full" / "full_value_qa.tsv")
    assert {item.country for item in task.items} == {"UK", "USA"}  # 9 Iranians are too few
    for spelling, country in (("Great Britain", "UK"), ("United States", "USA")):
        expected = plain_choice(answers, spelling)
        mine = [item for item in task.items if item.country == country]
        assert [(item.id, item.majority) for item in mine] == [(f"{country}/{name}", top) for name, top in expected]
        assert [item.half for item in mine] == ["neur"] * 40 + ["test"] * (len(expected) - 40)
    assert "USA/Q7" not in {item.id for item in task.items}
    assert "UK/Q7" in {item.id for item in task.items}


def test_four_wordings_of_an_item_are_four_questions(tmp_path: Path) -> None:
    write_tables(tmp_path)
    task = WorldValuesBench.load(tmp_path)
    questions = task.questions("all", TOKENIZER)
    assert len(questions) == len({q.prompt for q in questions}) == 4 * len(task.items)
    assert questions[0].id == f"{task.items[0].id}/scale-1"
    assert all(str(item.majority) == questions[4 * i].answer for i, item in enumerate(task.items))
    assert questions[0].prompt.startswith("Country: UK\n\nOn a scale of ")
    assert {q.answer for q in questions} >= {"0", "10"}


def test_ten_is_counted_as_unusable_where_it_is_two_tokens(tmp_path: Path) -> None:
    write_tables(tmp_path)
    questions = WorldValuesBench.load(tmp_path).questions("all", TOKENIZER)
    tens = [q.id for q in questions if q.answer == "10"]
    assert tens
    assert [q.id for q in split_usable(TOKENIZER, questions).unusable] == tens


def test_the_score_is_the_distance_as_a_share_of_the_farthest_end(tmp_path: Path) -> None:
    write_tables(tmp_path)
    task = WorldValuesBench.load(tmp_path)
    for item in task.items:
        for prediction in range(item.low, item.high + 1):
            farthest = max(abs(item.low - item.majority), abs(item.high - item.majority))
            points = task.score(f"{item.id}/scale-2", str(item.majority), f" {prediction}")
            assert points == (1 - abs(prediction - item.majority) / farthest) * 100
        for invalid in ("", "A", "-1", "²", "1.5", str(item.high + 1), "11", "<eos>"):
            assert task.score(f"{item.id}/scale-2", str(item.majority), invalid) == 0.0
    zero_based = next(item for item in task.items if item.low == 0)
    assert task.score(f"{zero_based.id}/scale-1", "0", "0") == 100.0
    assert task.score(f"{zero_based.id}/scale-1", "0", "1") == 50.0
    assert task.score(f"{zero_based.id}/scale-1", "0", "2") == 0.0
    with pytest.raises(CulnigError, match="'UK/Q9999/scale-1' is no question"):
        task.score("UK/Q9999/scale-1", "1", "1")


def test_the_codebook_names_values_where_it_agrees_with_the_question(tmp_path: Path) -> None:
    write_tables(tmp_path)
    choices = {"0": f"least {1}", "1": "middle", "2": "x", "3": "y", "4": "z", "-1": "Don't know"}
    first = {**choices, "1": "least 3"}  # Q3 is on 1–4
    book = {"Q3": {"choices": first}, "Q6": {"choices": {**choices, "1": "another order"}}}
    (tmp_path / "codebook.json").write_text(json.dumps(book))
    texts = {item.id: item.text for item in WorldValuesBench.load(tmp_path).items}
    assert texts["UK/Q3"].endswith("\n\n1. least 3\n2. x\n3. y\n4. z")
    assert "another order" not in texts["UK/Q6"]


def test_answers_off_the_scale_are_counted_and_said(tmp_path: Path) -> None:
    write_tables(tmp_path)
    path = tmp_path / "full" / "full_value_qa.tsv"
    lines = path.read_text().split("\n")
    cells = lines[1].split("\t")
    lines[1] = "\t".join([cells[0], "-2", "9", *cells[3:]])
    path.write_text("\n".join(lines))
    task = WorldValuesBench.load(tmp_path)
    assert task.off_scale == 1  # 9 in Q1; the first is Q234A, which is not asked
    assert task.notes() == ("1 answers are off their question's scale and were left out",)


def test_divergence_is_that_of_kullback_and_leibler() -> None:
    assert divergence(np.array([5, 0, 5]), np.array([10, 10, 20])) == pytest.approx(0.5 * math.log(2))
    assert divergence(np.array([3, 3]), np.array([8, 8])) == 0


def replace(name: str, old: str, new: str) -> Any:
    def apply(folder: Path) -> None:
        path = folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return apply


BROKEN = [
    (lambda folder: (folder / "question_metadata.json").unlink(), "no question_metadata.json in or under"),
    (replace("full/full_value_qa.tsv", "\tQ5\t", "\tQ005\t"), "full_value_qa.tsv has no column Q5"),
    (replace("full/full_demographic_qa.tsv", "B_COUNTRY", "COUNTRY"), "no column B_COUNTRY"),
    (replace("full/full_value_qa.tsv", "\n826070001\t", "\n826079999\t"), "participant 826079999 .* is not in"),
    (replace("full/full_demographic_qa.tsv", "826070002", "826070001"), "demographic_qa.* participant 826070001 twice"),
    (replace("full/full_value_qa.tsv", "\n826070002\t", "\n826070001\t"), "value_qa.* participant 826070001 twice"),
    (replace("full/full_demographic_qa.tsv", "826070002\tGreat Britain", "826070002\t"), "no B_COUNTRY for .*70002"),
    (replace("question_metadata.json", '"answer_scale_min": 0', '"answer_scale_min": "x"'), "question Q1 lacks"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_broken_table_is_refused_in_one_sentence(tmp_path: Path, change: Any, message: str) -> None:
    write_tables(tmp_path)
    change(tmp_path)
    with pytest.raises(CulnigError, match=message):
        WorldValuesBench.load(tmp_path)


@pytest.mark.parametrize("cell", ["many", "NA", "1.5", "None"])
def test_an_answer_that_is_no_integer_is_named(tmp_path: Path, cell: str) -> None:
    write_tables(tmp_path)
    path = tmp_path / "full" / "full_value_qa.tsv"
    lines = path.read_text().split("\n")
    column = lines[0].split("\t").index("Q5")
    cells = lines[4].split("\t")
    cells[column] = cell
    lines[4] = "\t".join(cells)
    path.write_text("\n".join(lines))
    with pytest.raises(CulnigError, match=f"has the answer '{cell}' in column Q5"):
        WorldValuesBench.load(tmp_path)


def test_the_survey_has_no_spain_and_is_on_no_hub(tmp_path: Path) -> None:
    write_tables(tmp_path)
    with pytest.raises(CulnigError, match="none of Spain has 10 answers"):
        WorldValuesBench.load(tmp_path, countries=["Spain"])
    with pytest.raises(CulnigError, match="on no hub; give the folder with its full_value_qa.tsv"):
        WorldValuesBench.load()


def test_the_real_metadata_gives_238_questions_on_their_scales(tmp_path: Path) -> None:
    metadata, codebook = (real_file(f"worldvaluesbench/{name}.json") for name in ("question_metadata", "codebook"))
    entries = json.loads(metadata.read_text(encoding="utf-8"))
    names = [f"Q{i}" for i in range(1, 260) if f"Q{i}" in entries]
    assert len(names) == 238
    lines, people = ["\t".join(["D_INTERVIEW", *names])], ["D_INTERVIEW\tB_COUNTRY"]
    for i in range(20):
        top = [str(entries[name]["answer_scale_max" if i % 3 else "answer_scale_min"]) for name in names]
        lines.append("\t".join([str(i), *top]))
        people.append(f"{i}\t{'Great Britain' if i < 12 else 'Iran'}")
    (tmp_path / "values.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "people.tsv").write_text("\n".join(people) + "\n")
    task = WorldValuesBench.load(tmp_path / "values.tsv", tmp_path / "people.tsv", metadata, codebook)
    assert task.off_scale == 0
    assert Counter(item.half for item in task.items) == {"neur": 40, "test": 198}
    assert Counter((item.low, item.high) for item in task.items) == {
        (1, 4): 91, (1, 10): 50, (1, 2): 36, (1, 5): 20, (1, 3): 20, (0, 2): 19, (1, 7): 1, (1, 8): 1,
    }  # fmt: skip
    # Q119's codebook counts from 0 and orders otherwise: only the question speaks.
    texts = {item.id: item.text for item in task.items}
    assert "Hard to say" not in texts["UK/Q119"]
    assert texts["UK/Q1"].endswith(
        "1. Very important\n2. Rather important\n3. Not very important\n4. Not at all important"
    )
