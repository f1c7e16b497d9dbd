"""`tasks` and `answer`: lists, counts, previews, answers and refusals."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from choice_files import cultural_rows, normad_row, write_csv
from test_blend_short import write as write_blend
from test_cli import invoke, run
from test_worldvaluesbench import write_tables

from culnig_fast.evaluation import Evaluation
from culnig_fast.tasks.base import tasks


def test_every_task_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "tasks")
    assert list(found) == list(tasks())
    assert found["worldvaluesbench"]["files"].keys() == {"demographics", "metadata", "codebook"}
    assert found["culturalbench"]["hub"] == "kellycyy/CulturalBench"
    assert found["blend_short"]["answers"] == "text"
    assert invoke("tasks") == 0
    assert "--file topics=PATH" in capsys.readouterr().out


def test_counts_per_split_and_country(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    countries = ["united_kingdom"] * 3 + ["türkiye"] * 2
    rows = [normad_row(number, country, "yes") for number, country in enumerate(countries)]
    path = write_csv(tmp_path / "rows.csv", rows)
    found = run(capsys, "tasks", "--task", "normad", "--data", path)
    assert found["wordings"] == 4
    assert {name: entry["items"] for name, entry in found["splits"].items()} == {"all": 5, "neur": 2, "test": 3}
    assert found["splits"]["neur"]["groups"] == {"UK": 4, "Türkiye": 4}
    assert invoke("tasks", "--task", "normad", "--data", path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[2:5]] == [
        ["UK", "12", "4", "8"], ["all", "together", "20", "8", "12"], ["items", "5", "2", "3"],
    ]  # fmt: skip


def test_a_preview_shows_prompts_as_the_model_sees_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_csv(tmp_path / "rows.csv", cultural_rows())
    found = run(capsys, "tasks", "--task", "culturalbench", "--data", path, "--preview", 3)
    shown = found["splits"]["test"]["preview"]
    assert len(shown) == 3
    assert shown[0]["prompt"].startswith("<|user|>What is usual?")
    assert shown[0]["prompt"].endswith('<|assistant|>{"answer_choice":"')
    assert invoke("tasks", "--task", "culturalbench", "--data", path, "--preview", 1) == 0
    assert shown[0]["prompt"] in capsys.readouterr().out


def test_unusable_questions_are_counted_for_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tables(tmp_path)
    found = run(capsys, "tasks", "--task", "worldvaluesbench", "--data", tmp_path, "--model", "demo")
    questions = run(capsys, "tasks", "--task", "worldvaluesbench", "--data", tmp_path)
    assert "unusable" not in questions["splits"]["all"]
    unusable = found["splits"]["all"]["unusable"]
    assert unusable
    assert {name.split("/")[0] for name in unusable} <= {"UK", "USA"}
    assert invoke("tasks", "--task", "worldvaluesbench", "--data", tmp_path, "--model", "demo") == 0
    assert f"{len(unusable):,} with an answer of several tokens, unusable" in capsys.readouterr().out


def test_further_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tables(tmp_path)
    (tmp_path / "question_metadata.json").rename(tmp_path / "elsewhere.json")
    values = tmp_path / "full" / "full_value_qa.tsv"
    file = f"metadata={tmp_path / 'elsewhere.json'}"
    found = run(capsys, "tasks", "--task", "worldvaluesbench", "--data", values, "--file", file)
    assert found["splits"]["neur"]["items"] == 80


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "x.csv"), "which benchmark?"),
        (("--preview", 2), "which benchmark?"),
        (("--task", "nothing"), "unknown task 'nothing'"),
        (("--task", "plain", "--data", "no.csv"), "no.csv"),
        (("--task", "plain", "--file", "topics"), "--file topics is not NAME=PATH"),
        (("--task", "plain", "--file", "a=b", "--file", "a=c"), "names a twice"),
        (("--task", "pick", "--file", "a=b"), "takes no further file 'a'"),
        (("--task", "pick", "--model", "nowhere-at-all"), "no checkpoint folder nowhere-at-all"),
    ],
)
def test_bad_input_is_one_sentence(arguments: tuple[Any, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("tasks", *arguments) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert words in message


def test_short_answers_of_the_embedded_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "simplemma", None)
    write_blend(tmp_path)
    for country in ("Spain", "US"):
        (tmp_path / "prompts" / f"{country}_prompts.csv").rename(tmp_path / f"{country}_prompts.csv")
    # All 16 countries are wanted: the first that is missing is named.
    options = ("--data", tmp_path, "--file", f"prompts={tmp_path}", "--quiet", "--device", "cpu")
    assert invoke("answer", "demo", *options) == 1
    assert "no Algeria_data.json" in capsys.readouterr().err
    sixteen(tmp_path)
    found = run(capsys, "answer", "demo", *options, "--limit", 1, "--max-new-tokens", 3, "--out", tmp_path / "a.jsonl")
    assert found["questions"] == 16
    assert len(found["groups"]) == 16
    assert any("simplemma is not installed" in note for note in found["notes"])
    assert len(Evaluation.load(tmp_path / "a.jsonl").ids) == 16
    assert invoke("answer", "demo", "--task", "pick") == 1
    assert "use evaluate" in capsys.readouterr().err


def sixteen(folder: Path) -> None:
    from culnig_fast.tasks.countries import COUNTRIES

    for country in COUNTRIES:
        name = country.replace(" ", "_")
        if name not in ("Spain", "USA"):
            (folder / "annotations" / f"{name}_data.json").write_bytes(
                (folder / "annotations" / "Spain_data.json").read_bytes()
            )
            (folder / f"{name}_prompts.csv").write_bytes((folder / "Spain_prompts.csv").read_bytes())
