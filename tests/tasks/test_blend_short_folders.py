"""BLEnD's short answers: files with their traps, what counts as right, and what is left out."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from real_data import real_file
from wordlevel import make_tokenizer

from culnig_fast.errors import CulnigError
from culnig_fast.tasks import answer_text
from culnig_fast.tasks.answer_text import first_answer, lemmatiser, normalised
from culnig_fast.tasks.base import load_task
from culnig_fast.tasks.blend_short import PROMPTS, BlendShort

TOKENIZER = make_tokenizer()


def entry(question: str, english: str, answers: list[tuple[list[str], list[str], int]], **idks: int) -> dict[str, Any]:
    annotations = [{"answers": a, "en_answers": e, "count": n} for a, e, n in answers]
    return {"question": question, "en_question": english, "annotations": annotations, "idks": idks}


ENTRIES = {
    "Ab-1": entry("¿Qué?\n", "What?", [(["pan"], ["bread"], 1), (["El té"], ["Tea", "the tea"], 4)]),
    "Ab-2": entry("¿Quién?", "Who?", [(["nadie"], [], 2)], idk=5),
    "Ab-3": entry("¿Cuándo?", "When?", [(["17"], ["17"], 3)], **{"no-answer": 1, "not-applicable": 1, "tal vez": 9}),
    "Ab-4": entry("¿Dónde?", "Where?", [(["x"], ["x"], 3)], **{"no-answer": 1, "not-applicable": 2}),
}


def write(
    folder: Path, country: str = "Mexico", *, zipped: bool = False, prompts: list[list[str]] | None = None
) -> Path:
    """BLEnD's data folder of one country, by its file names."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "prompts").mkdir(exist_ok=True)
    text = json.dumps(ENTRIES, ensure_ascii=False).encode()
    if zipped:
        (folder / "annotations" / f"{country}_data.json.gz").write_bytes(gzip.compress(text))
    else:
        (folder / "annotations" / f"{country}_data.json").write_bytes(text)
    with (folder / "prompts" / f"{country}_prompts.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "English", "Translation", "G-Translation"])
        writer.writerows(
            prompts
            or [
                ["inst-4", "Answer\nbriefly: {q}", "Contesta: {q}", ""],
                ["pers-3", 'You are "local": {q}', "(lost)", "Eres local: {q}"],
                ["pers-3", "again {q}", "otra {q}", ""],
                ["inst-1", "no slot", "nada", ""],
            ]
        )
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_questions_in_both_languages_and_wordings(tmp_path: Path, zipped: bool) -> None:
    task = BlendShort.load(write(tmp_path, zipped=zipped), countries=("Mexico",))
    questions = task.questions("all", TOKENIZER)
    assert task.generates and task.unanswered == 2
    assert [q.id for q in questions[:4]] == [
        f"Mexico/Ab-1/{lang}/{p}" for lang in ("English", "Spanish") for p in PROMPTS
    ]
    assert {q.group for q in questions} == {"Mexico"} and len(questions) == 2 * 2 * 2
    prompts = {q.id: q.prompt for q in questions}
    assert "Answer\nbriefly: What?" in prompts["Mexico/Ab-1/English/inst-4"]
    assert "Eres local: ¿Qué?" in prompts["Mexico/Ab-1/Spanish/pers-3"]
    assert questions[0].answer == "El té"  # the most frequent answer comes first
    for choice, kept in (("english", "English"), ("local", "Spanish")):
        only = BlendShort.load(tmp_path, countries=("Mexico",), languages=choice).questions("all", TOKENIZER)
        assert len(only) == 4 and all(kept in q.id for q in only)


def test_where_english_is_spoken_there_is_one_language(tmp_path: Path) -> None:
    questions = BlendShort.load(write(tmp_path, "US"), countries=("US",)).questions("all", TOKENIZER)
    assert {q.id.split("/")[2] for q in questions} == {"English"}
    assert "¿Qué?" in questions[0].prompt  # what annotators saw


@pytest.mark.parametrize(
    ("prediction", "points"),
    [
        ("tea", 100),
        ("The Tea.", 100),
        ("Answer: EL TÉ!\nBecause", 100),
        ("\n\n  Ｔｅａ", 100),
        ("bread", 100),
        ("green tea", 0),
        ("te", 0),
        ("", 0),
        ("...", 0),
    ],
)
def test_an_answer_counts_when_it_equals_any_annotators(tmp_path: Path, prediction: str, points: float) -> None:
    task = BlendShort.load(write(tmp_path), countries=("Mexico",))
    assert task.score("Mexico/Ab-1/English/inst-4", "El té", prediction) == points


def test_an_unknown_question_is_named(tmp_path: Path) -> None:
    task = BlendShort.load(write(tmp_path), countries=("Mexico",))
    with pytest.raises(CulnigError, match="'Mexico/Ab-9/English/inst-4' is no question"):
        task.score("Mexico/Ab-9/English/inst-4", "x", "x")


def test_halves_come_from_the_topics_file(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(CulnigError, match="needs topics"):
        BlendShort.load(tmp_path, countries=("Mexico",)).questions("neur", TOKENIZER)
    (tmp_path / "US_questions.csv").write_text(
        ",ID,Topic,Source,Question,Translation\n0,Ab-1,Food,s,q,t\n1,Ab-3,Education,s,q,t\n", encoding="utf-8"
    )
    task = BlendShort.load(tmp_path, countries=("Mexico",))
    assert {q.id.split("/")[1] for q in task.questions("neur", TOKENIZER)} == {"Ab-1"}
    assert {q.id.split("/")[1] for q in task.questions("test", TOKENIZER)} == {"Ab-3"}


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (lambda f: (f / "annotations" / "Mexico_data.json").unlink(), "no Mexico_data.json in"),
        (lambda f: (f / "annotations" / "Mexico_data.json").write_text("[]"), "is not an object of questions"),
        (lambda f: (f / "annotations" / "Mexico_data.json").write_text("{"), "not a readable file of annotations"),
        (lambda f: (f / "annotations" / "Mexico_data.json").write_text('{"a": {}}'), "question a has no question"),
        (lambda f: (f / "prompts" / "Mexico_prompts.csv").write_text("id,English\ninst-4,{q}\n"), "Translation"),
        (lambda f: write(f, prompts=[["inst-4", "{q}", "{q}", ""]]), "no prompt pers-3"),
        (lambda f: write(f, prompts=[["inst-4", "{q}", "nada", ""]]), "inst-4 has no wording"),
    ],
)
def test_broken_files_are_refused_in_one_sentence(tmp_path: Path, breaking: Any, message: str) -> None:
    breaking(write(tmp_path))
    with pytest.raises(CulnigError, match=message):
        BlendShort.load(tmp_path, countries=("Mexico",))


def test_without_a_folder_or_with_another_language_it_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(CulnigError, match="name it"):
        load_task("blend_short")
    with pytest.raises(CulnigError, match="unknown languages 'dutch'"):
        BlendShort.load(write(tmp_path), countries=("Mexico",), languages="dutch")


def test_text_is_normalised_without_losing_marks() -> None:
    assert normalised("  The ‘Big’ apple-pie ") == "big apple pie"
    assert normalised("the") == "the"
    assert normalised("ভাত।") == "ভাত"
    assert first_answer("\n ---\nANSWER:  rice\nmore") == "rice"


def test_lemmas_are_compared_where_the_package_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        @staticmethod
        def lemmatize(word: str, lang: str) -> str:
            return word.rstrip("s") if lang == "en" else word

    task = BlendShort.load(write(tmp_path), countries=("Mexico",))
    monkeypatch.setattr(answer_text.importlib, "import_module", lambda name: Library)
    assert task.score("Mexico/Ab-1/English/inst-4", "", "breads") == 100
    assert task.score("Mexico/Ab-1/Spanish/inst-4", "", "breads") == 0
    assert any("by lemmas too" in note for note in task.notes())

    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(answer_text.importlib, "import_module", absent)
    assert task.score("Mexico/Ab-1/English/inst-4", "", "breads") == 0
    assert (
        lemmatiser("English")[1]
        == "English: simplemma is not installed (extra lemmas), answers are compared as written"
    )
    assert lemmatiser("Hausa")[1].startswith("Hausa: no lemmatiser")


def test_the_real_folder_has_sixteen_countries() -> None:
    task = BlendShort.load(real_file("blend/US_questions.csv").parent)
    questions = task.questions("all", TOKENIZER)
    assert len({q.group for q in questions}) == 16
    assert len(questions) == 2 * len(task.items)
    languages = {
        item.country: {i.language for i in task.items if i.country == item.country} for item in task.items[::97]
    }
    assert all(len(found) == (1 if country in ("UK", "USA") else 2) for country, found in languages.items())
    assert 0 < task.unanswered < 16 * 500
    halves = [len(task.questions(split, TOKENIZER)) for split in ("neur", "test")]
    assert sum(halves) == len(questions) and min(halves) > 0
