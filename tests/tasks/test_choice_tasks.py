"""CulturalBench, NormAd, CommonsenseQA, QNLI and MRPC: counts, traps, order of options, refusals."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import fake_hub
import numpy as np
import pytest
from choice_files import (
    commonsense_rows,
    cultural_rows,
    mrpc_rows,
    normad_row,
    qnli_rows,
    write_any,
    write_bare_tsv,
    write_csv,
)
from real_data import real_file
from small_tokenizers import byte_level

from culnig_fast.errors import CulnigError
from culnig_fast.evaluation import Evaluation
from culnig_fast.questions import Question
from culnig_fast.tasks.base import load_task, tasks
from culnig_fast.tasks.commonsenseqa import CommonsenseQA
from culnig_fast.tasks.culturalbench import WORDINGS, CulturalBench
from culnig_fast.tasks.glue import Mrpc, Qnli
from culnig_fast.tasks.normad import LABELS, NormAd
from culnig_fast.tasks.normad import OPTIONS as VERDICTS
from culnig_fast.tasks.prompts import shuffled

TOKENIZER = byte_level()


def chosen(question: Question) -> str:
    """The text of the option that the answer's label stands for."""
    lines = dict(re.findall(r"^([A-E1-5])\. (.*)$", question.prompt, flags=re.MULTILINE))
    return lines[question.answer]


def evaluation(ids: list[str], answers: list[str], predictions: list[str]) -> Evaluation:
    correct = np.array([a == p for a, p in zip(answers, predictions, strict=True)])
    n = len(ids)
    return Evaluation(tuple(ids), ("g",) * n, tuple(answers), tuple(predictions), correct, np.zeros(n))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_culturalbench_keeps_its_text_and_asks_every_row(tmp_path: Path, suffix: str) -> None:
    rows = cultural_rows()
    task = CulturalBench.load(write_any(tmp_path / f"rows{suffix}", rows))
    questions = task.questions("test", TOKENIZER)
    assert Counter(q.group for q in questions) == {"UK": 12, "Türkiye": 8}
    for question in questions:
        row = rows[int(question.id.split("/")[0])]
        assert chosen(question) == row[f"prompt_option_{row['answer'].lower()}"]
        assert f"{row['prompt_question'].strip()}\n\n" in question.prompt
        assert all(row[f"prompt_option_{letter}"] in question.prompt for letter in "abcd")
    assert chosen(questions[0]) == "None"


def test_options_are_shuffled_by_the_documented_key(tmp_path: Path) -> None:
    rows = cultural_rows()
    questions = iter(CulturalBench.load(write_csv(tmp_path / "rows.csv", rows)).questions("test", TOKENIZER))
    for row in rows:
        for wording in WORDINGS:
            question = next(questions)
            places = shuffled(f"{row['data_idx']}_{wording.instruction}", list("ABCD"))
            assert question.id == f"{row['data_idx']}/{wording.name}"
            # By place: of row 3's equal options, the one that the file names.
            assert question.answer == wording.labels[places.index(row["answer"])]
            assert wording.instruction in question.prompt


def test_normad_halves_each_country_and_label_and_gives_nothing_away(tmp_path: Path) -> None:
    cells = [("türkiye", "yes"), ("timor-leste", "no"), ("türkiye", "yes"), ("united_kingdom", "neutral")]
    cells += [("türkiye", "yes"), ("timor-leste", "no"), ("bosnia_and_herzegovina", "yes"), ("türkiye", "no")]
    task = NormAd.load(write_csv(tmp_path / "n.csv", [normad_row(i, *cell) for i, cell in enumerate(cells)]))
    assert [item.half for item in task.items] == ["neur", "neur", "test", "test", "test", "test", "test", "test"]
    assert [item.group for item in task.items[:4]] == ["Türkiye", "Timor-Leste", "Türkiye", "UK"]
    assert task.items[6].group == "Bosnia and Herzegovina"
    for question in task.questions("all", TOKENIZER):
        number = int(question.id.split("/")[0])
        assert chosen(question) == VERDICTS[LABELS.index(cells[number][1])]
        assert f'Person {number} said "no, thanks",\nand left.' in question.prompt
        assert "secret" not in question.prompt


@pytest.mark.parametrize("layout", ["hub", "site"])
def test_commonsenseqa_in_both_layouts(tmp_path: Path, layout: str) -> None:
    rows = commonsense_rows()
    if layout == "site":
        rows = [
            {
                "id": row["id"],
                "answerKey": row["answerKey"],
                "question": {
                    "stem": row["question"],
                    "question_concept": "thing",
                    "choices": [
                        {"label": label, "text": text} for label, text in zip(*row["choices"].values(), strict=True)
                    ],
                },
            }
            for row in rows
        ]
    questions = CommonsenseQA.load(write_any(tmp_path / "dev.jsonl", rows)).questions("test", TOKENIZER)
    assert len(questions) == 8
    assert [chosen(q) for q in questions] == ["mall"] * 4 + ["2"] * 4
    assert all(q.prompt.startswith("What is where?\n\n") for q in questions)
    # The two equal options are two places: which of them is gold follows the file's letter.
    places = shuffled(f"{0:032x}_{_instruction(questions[0])}", list("ABCDE"))
    assert questions[0].answer == "ABCDE"[places.index("E")]


def _instruction(question: Question) -> str:
    return question.prompt.split("\n\n")[2].rpartition("\n")[0]


def test_commonsenseqa_from_parquet_equals_jsonl(tmp_path: Path) -> None:
    files = [write_any(tmp_path / f"dev{suffix}", commonsense_rows()) for suffix in (".jsonl", ".parquet")]
    assert CommonsenseQA.load(files[0]) == CommonsenseQA.load(files[1])


def test_quotes_in_glue_files_are_text(tmp_path: Path) -> None:
    qnli = Qnli.load(write_bare_tsv(tmp_path / "dev.tsv", qnli_rows()))
    assert [item.gold for item in qnli.items] == [0, 1, 1]
    questions = qnli.questions("test", TOKENIZER)
    assert len({q.id for q in questions}) == 12
    assert questions[0].prompt.startswith('Question: Who said "go?\nSentence: She said "go\n\n')
    assert [chosen(q) for q in questions] == ["Yes"] * 4 + ["No"] * 8
    mrpc = Mrpc.load(write_bare_tsv(tmp_path / "msr_paraphrase_test.txt", mrpc_rows()))
    assert [(item.id, item.gold) for item in mrpc.items] == [("10-11", 0), ("10-12", 1)]
    assert 'First sentence: He said "yes\nSecond sentence: He agreed"' in mrpc.questions("test", TOKENIZER)[0].prompt


def test_glue_from_the_hubs_columns_has_the_same_labels(tmp_path: Path) -> None:
    hub = [{"idx": 7, "question": "Q?", "sentence": "S.", "label": 0}]
    assert Qnli.load(write_any(tmp_path / "q.parquet", hub)).items[0].gold == 0
    pair = [{"idx": i, "sentence1": "a", "sentence2": "b", "label": label} for i, label in enumerate((1, 0))]
    assert [item.gold for item in Mrpc.load(write_any(tmp_path / "m.jsonl", pair)).items] == [0, 1]


HUB = {
    "culturalbench": (("kellycyy/CulturalBench", "CulturalBench-Easy", "test"), cultural_rows()),
    "normad": (("akhilayerukola/NormAd", None, "train"), [normad_row(0, "iran", "yes")]),
    "commonsenseqa": (("tau/commonsense_qa", None, "validation"), commonsense_rows()),
    "qnli": (("nyu-mll/glue", "qnli", "validation"), [{"idx": 0, "question": "a", "sentence": "b", "label": 1}]),
    "mrpc": (("nyu-mll/glue", "mrpc", "test"), [{"idx": 0, "sentence1": "a", "sentence2": "b", "label": 1}]),
}


@pytest.mark.parametrize("name", HUB)
def test_without_a_file_the_hub_is_asked(name: str, monkeypatch: Any) -> None:
    place, rows = HUB[name]
    asked = []

    def load_dataset(source: str, config: str | None, *, split: str) -> datasets.Dataset:
        asked.append((source, config, split))
        return datasets.Dataset.from_list(rows)

    fake_hub.answer(monkeypatch, load_dataset)
    assert load_task(name).questions("test" if "test" in tasks()[name].splits else "all", TOKENIZER)
    assert asked == [place]


def edited(rows: list[dict[str, Any]], **cells: Any) -> list[dict[str, Any]]:
    return [{**rows[0], **cells}, *rows[1:]]


def dropped(rows: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    return [{name: cell for name, cell in row.items() if name != column} for row in rows]


BROKEN = [
    ("culturalbench", dropped(cultural_rows(), "answer"), "no column answer"),
    ("culturalbench", edited(cultural_rows(), answer="E"), "row 0 has the unknown answer 'E'; it must be A, B, C or D"),
    ("culturalbench", edited(cultural_rows(), prompt_option_c=" "), "row 0 has no text for option C"),
    ("culturalbench", edited(cultural_rows(), data_idx="1"), "id '1/letters-1' occurs twice"),
    ("normad", [normad_row(4, "iran", "maybe")], "row 4 has the unknown Gold Label 'maybe'; .* yes, no, neutral"),
    ("normad", dropped([normad_row(4, "iran", "yes")], "Story"), "no column Story"),
    ("normad", edited([normad_row(4, "iran", "yes")], Story=" "), "row 4 has an empty Story"),
    ("commonsenseqa", edited(commonsense_rows(), answerKey=""), "unknown answer '', .* use validation"),
    ("commonsenseqa", dropped(commonsense_rows(), "answerKey"), "no column answerKey"),
    ("commonsenseqa", dropped(commonsense_rows(), "choices"), "neither a column choices nor question.stem"),
    ("commonsenseqa", edited(commonsense_rows(), choices="['a' 'b']"), "choices that are not JSON"),
    ("commonsenseqa", edited(commonsense_rows(), choices={"label": ["A"], "text": ["x"]}), "five with a label"),
    ("commonsenseqa", edited(commonsense_rows(), choices={"label": ["A"], "text": []}), "as many labels as texts"),
    ("qnli", edited(qnli_rows(), label="maybe"), "row 1 of .* unknown label 'maybe'; .* entailment"),
    ("qnli", edited(qnli_rows(), label="-1"), "unknown label '-1' .hidden"),
    ("qnli", dropped(qnli_rows(), "sentence"), "no column sentence in row 1"),
    ("qnli", edited(qnli_rows(), sentence=" "), "row 1 of .* nothing in column sentence"),
    ("mrpc", edited(mrpc_rows(), Quality="2"), "unknown label '2'"),
    ("mrpc", dropped(mrpc_rows(), "#2 String"), "no column sentence2 or #2 String"),
]


@pytest.mark.parametrize(("name", "rows", "message"), BROKEN)
def test_a_broken_file_is_refused_in_one_sentence(
    tmp_path: Path, name: str, rows: list[dict[str, Any]], message: str
) -> None:
    path = write_any(tmp_path / "rows.jsonl", rows)
    with pytest.raises(CulnigError, match=message) as caught:
        load_task(name, path).questions(tasks()[name].splits[0], TOKENIZER)
    assert "\n" not in str(caught.value)


def test_points_are_exact_match_and_the_abilities_are_tasks(tmp_path: Path) -> None:
    task = CulturalBench.load(write_csv(tmp_path / "rows.csv", cultural_rows()))
    scores = task.scores(evaluation(["0/letters-1", "1/letters-1"], ["A", "B"], ["A", " B"]))
    assert scores.dtype == np.float64
    assert scores.tolist() == [100.0, 0.0]
    for name in ("pick", "membership", "equality"):
        questions = load_task(name).questions("test", TOKENIZER)
        assert len(questions) == 300
        assert {q.group for q in questions} == {name}


def test_the_real_culturalbench_has_its_counts() -> None:
    path = real_file("culturalbench/CulturalBench-Easy.csv")
    task = CulturalBench.load(path)
    # The published accuracies are multiples of a 4,908th: every row is asked in four wordings.
    assert len(task.questions("test", TOKENIZER)) == 4 * 1227
    assert len({item.group for item in task.items}) == 45
    assert Counter("ABCD"[item.gold] for item in task.items) == {"A": 658, "B": 254, "C": 189, "D": 126}
    assert task.items[221].options[3] == "None"
    gold = Counter(q.answer for q in task.questions("test", TOKENIZER))
    # Shuffled, every place is gold in a quarter: 5 standard deviations are 43 of 614 (letters) and of 614 (numbers).
    assert all(abs(gold[label] - 613.5) < 110 for label in "ABCD1234"), gold


def test_the_real_qnli_and_commonsenseqa_have_their_counts() -> None:
    qnli = Qnli.load(real_file("qnli/dev.tsv"))
    assert Counter(item.gold for item in qnli.items) == {0: 2702, 1: 2761}
    assert sum(not item.text.split("\nSentence: ")[1].isascii() for item in qnli.items) == 632
    task = CommonsenseQA.load(real_file("commonsenseqa/dev_rand_split.jsonl"))
    gold = Counter("ABCDE"[item.gold] for item in task.items)
    assert gold == {"A": 239, "B": 255, "C": 241, "D": 251, "E": 235}
    assert sum(len(set(item.options)) < 5 for item in task.items) == 24
    assert len(task.questions("test", TOKENIZER)) == 4 * 1221


def test_normad_with_the_real_counts_per_country_is_halved_as_published(tmp_path: Path) -> None:
    with real_file("normad/normad_country_dist.csv").open(encoding="utf-8-sig", newline="") as handle:
        cells = [(row["Country"], label) for row in csv.DictReader(handle) for label in LABELS
                 for _ in range(int(row[label]))]  # fmt: skip
    task = NormAd.load(write_csv(tmp_path / "n.csv", [normad_row(i, *cell) for i, cell in enumerate(cells)]))
    assert Counter(item.half for item in task.items) == {"neur": 1262, "test": 1371}
    groups = {item.group for item in task.items}
    assert len(groups) == 75
    assert {"Timor-Leste", "Türkiye", "USA", "UK", "Hong Kong", "South Korea"} <= groups


GLUE_ROW = {"question": "a", "sentence": "b", "sentence1": "a", "sentence2": "b", "label": 1}


@pytest.mark.parametrize("name", ["qnli", "mrpc"])
def test_training_rows_are_asked_in_the_wordings_in_turn(name: str, tmp_path: Path) -> None:
    files = {}
    for part, count in (("test", 2), ("train", 9)):
        files[part] = tmp_path / f"{part}.jsonl"
        files[part].write_text("".join(json.dumps({**GLUE_ROW, "idx": i}) + "\n" for i in range(count)))
    task = load_task(name, files["test"], {"train": files["train"]})
    assert len(task.questions("test", TOKENIZER)) == 8
    training = task.questions("train", TOKENIZER)
    wordings = [wording.name for wording in type(task).wordings]
    assert sorted(question.id for question in training) == sorted(f"train/{i}/{wordings[i % 4]}" for i in range(9))
    with pytest.raises(CulnigError, match="give theirs as train"):
        load_task(name, files["test"]).questions("train", TOKENIZER)


@pytest.mark.parametrize("name", ["qnli", "mrpc"])
def test_the_hub_s_training_rows_are_read_only_when_asked_for(name: str, monkeypatch: Any) -> None:
    asked = []

    def load_dataset(source: str, config: str | None, *, split: str) -> datasets.Dataset:
        asked.append(split)
        return datasets.Dataset.from_list([{**GLUE_ROW, "idx": 0}])

    fake_hub.answer(monkeypatch, load_dataset)
    task = load_task(name)
    assert len(asked) == 1
    assert [question.id.split("/")[0] for question in task.questions("train", TOKENIZER)] == ["train"]
    assert asked[1:] == ["train"]
