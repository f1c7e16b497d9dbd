"""BLEnD short answers: which questions, in which words, and what counts as right."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from real_data import real_file
from small_tokenizers import CHAT_TEMPLATE, byte_level

from culnig_fast.errors import CulnigError
from culnig_fast.tasks.answer_text import first_answer, lemmatiser, normalised
from culnig_fast.tasks.blend_short import LANGUAGES, BlendShort
from culnig_fast.tasks.countries import COUNTRIES

TOKENIZER = byte_level()


def an_answer(local: str, english: str, count: int) -> dict[str, Any]:
    return {"answers": [local], "en_answers": [english] if english else [], "count": count}


def an_entry(local: str, english: str, answers: list[dict[str, Any]], **idks: int) -> dict[str, Any]:
    return {
        "question": local,
        "en_question": english,
        "annotations": answers,
        "idks": {"idk": 0, "no-answer": 0, "not-applicable": 0, "weiß nicht": 1, **idks},
    }


SPAIN = {
    "Zz-01": an_entry("¿Qué se come?\n", "What is eaten?", [an_answer("pan", "bread", 1), an_answer("té", "", 4)]),
    "Zz-02": an_entry("¿Cuándo?", "When?", [an_answer("17", "17", 5)]),
    "Zz-03": an_entry("¿Quién?", "Who?", []),
    "Zz-04": an_entry("¿Dónde?", "Where?", [an_answer("casa", "home", 2)], idk=5),
    "Zz-05": an_entry("¿Por qué?", "Why?", [an_answer("sí", "yes", 2)], **{"no-answer": 1, "not-applicable": 2}),
}
USA = {"Zz-01": an_entry("What do you eat?", "What is eaten?", [an_answer("the bagels", "bagel", 2)])}


def write(folder: Path) -> Path:
    """A data folder as BLEnD's: one country gzipped and one not, repeated prompt ids, an empty translation."""
    for name in ("annotations", "prompts"):
        (folder / name).mkdir()
    (folder / "annotations" / "Spain_data.json").write_text(json.dumps(SPAIN, ensure_ascii=False), encoding="utf-8-sig")
    with gzip.open(folder / "annotations" / "US_data.json.gz", "wt", encoding="utf-8") as file:
        json.dump(USA, file)
    rows = [
        ["id", "English", "G-Translation", "Translation", "Edited Y/N"],
        ["inst-1", "unused", "", "", "N"],
        ["inst-4", "Brief, please: {q}\nAnswer:", "Breve: {q}", "", "N"],
        ["pers-3", "You live there. {q}", "x", "Vives allí. {q}", "Y"],
        ["inst-4", "second {q}", "", "segunda {q}", "N"],
    ]
    for country in ("Spain", "US"):
        with (folder / "prompts" / f"{country}_prompts.csv").open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows(rows)
    topics = "ID,Topic\nZz-01,Food\nZz-02,Family\nZz-03,Food\nZz-04,Food\nZz-05,Food\n"
    (folder / "US_questions.csv").write_text(topics)
    return folder


def load(folder: Path, **options: Any) -> BlendShort:
    return BlendShort.load(write(folder), countries=["Spain", "US"], **options)


def test_each_question_is_asked_in_both_languages_and_both_wordings(tmp_path: Path) -> None:
    task = load(tmp_path)
    questions = {q.id: q for q in task.questions("all", TOKENIZER)}
    assert list(questions) == [
        *(f"Spain/{n}/{lang}/{p}" for n in ("Zz-01", "Zz-02") for lang in ("English", "Spanish")
          for p in ("inst-4", "pers-3")),
        "USA/Zz-01/English/inst-4", "USA/Zz-01/English/pers-3",
    ]  # fmt: skip
    assert questions["Spain/Zz-01/English/inst-4"].prompt == "Brief, please: What is eaten?\nAnswer:\n"
    assert questions["Spain/Zz-01/Spanish/inst-4"].prompt == "Breve: ¿Qué se come?\n"
    assert questions["Spain/Zz-01/Spanish/pers-3"].prompt == "Vives allí. ¿Qué se come?\n"
    assert questions["USA/Zz-01/English/pers-3"].prompt == "You live there. What do you eat?\n"
    assert questions["Spain/Zz-01/English/inst-4"].answer == "té"  # four annotators against one
    assert task.unanswered == 3
    assert task.notes()[0].startswith("3 questions have no answer")
    chat = task.questions("all", byte_level(chat_template=CHAT_TEMPLATE))
    assert chat[0].prompt.endswith("</think>\n\n")
    assert "answer_choice" not in chat[0].prompt


@pytest.mark.parametrize(("languages", "count"), [("english", 6), ("local", 6), ("both", 10)])
def test_languages_can_be_chosen(tmp_path: Path, languages: str, count: int) -> None:
    assert len(load(tmp_path, languages=languages).questions("all", TOKENIZER)) == count


def test_topics_make_the_halves(tmp_path: Path) -> None:
    task = load(tmp_path)
    assert {q.id.split("/")[1] for q in task.questions("neur", TOKENIZER)} == {"Zz-01"}
    assert {q.id.split("/")[1] for q in task.questions("test", TOKENIZER)} == {"Zz-02"}
    (tmp_path / "US_questions.csv").unlink()
    bare = BlendShort.load(tmp_path / "annotations", countries=["Spain"])
    with pytest.raises(CulnigError, match="split 'neur' of blend_short needs topics"):
        bare.questions("neur", TOKENIZER)


@pytest.mark.parametrize(
    ("prediction", "right"),
    [("té", True), ("  Té.\n\nBecause", True), ("TE\u0301", True), ("te", False), ("\nAnswer: Bread!", True),
     ('"the bread"', True), ("brown bread", False), ("", False), ("...", False), ("17", False)],
)  # fmt: skip
def test_an_answer_is_right_when_it_equals_any_annotators(tmp_path: Path, prediction: str, right: bool) -> None:
    task = load(tmp_path)
    assert task.score("Spain/Zz-01/English/inst-4", "té", prediction) == 100.0 * right
    with pytest.raises(CulnigError, match="is no question of this BLEnD"):
        task.score("Spain/Zz-09/English/inst-4", "té", prediction)


def test_lemmas_are_an_extra_and_their_absence_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    task = load(tmp_path)
    monkeypatch.setitem(sys.modules, "simplemma", None)
    assert task.score("Spain/Zz-01/English/inst-4", "té", "breads") == 0.0
    assert "English: simplemma is not installed (extra lemmas), answers are compared as written" in task.notes()
    assert lemmatiser("Hausa") == (None, "Hausa: no lemmatiser, answers are compared as written")
    library = types.ModuleType("simplemma")
    library.lemmatize = lambda word, lang: {"en": word.removesuffix("s")}.get(lang, word)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "simplemma", library)
    assert task.score("Spain/Zz-01/English/inst-4", "té", "breads") == 100.0
    assert task.score("Spain/Zz-01/Spanish/inst-4", "té", "breads") == 0.0
    assert "English: answers are compared by lemmas too (simplemma)" in task.notes()


def test_what_is_compared_keeps_marks_and_drops_the_rest() -> None:
    assert normalised("  The  “Big-Mac”, please!") == "big mac please"
    assert normalised("\uff21\uff11") == "a1"  # full-width letters and digits are letters and digits
    assert normalised("অসমীয়া") != normalised("অসময")
    assert normalised("কা") != normalised("কি")
    assert normalised("a") == "a"
    assert first_answer("\n ** \nANSWER:  tea \nmore") == "tea"


def edit_prompts(folder: Path, old: str, new: str) -> None:
    path = folder / "prompts" / "Spain_prompts.csv"
    path.write_text(path.read_text(encoding="utf-8-sig").replace(old, new), encoding="utf-8")


BROKEN: list[tuple[Any, str]] = [
    (lambda f: (f / "annotations" / "Spain_data.json").unlink(), "no Spain_data.json in .*annotations"),
    (lambda f: (f / "annotations" / "US_data.json.gz").write_bytes(b"\x1f\x8b"), "US_data.json.gz is not a readable"),
    (lambda f: (f / "annotations" / "Spain_data.json").write_text("[]"), "is not an object of questions"),
    (lambda f: (f / "annotations" / "Spain_data.json").write_text('{"Q": {}}'), "question Q has no question, en_"),
    (lambda f: (f / "annotations" / "Spain_data.json").write_text(
        json.dumps({"Q": an_entry("a", "b", [{"count": 1}])})), "question Q has a malformed annotation"),
    (lambda f: edit_prompts(f, "Vives allí. {q}", "Vives allí."), "prompt pers-3 has no wording with {q}"),
    (lambda f: edit_prompts(f, "pers-3", "pers-9"), "has no prompt pers-3"),
    (lambda f: edit_prompts(f, "English", "Englisch"), "no column English"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_broken_file_is_refused_in_one_sentence(tmp_path: Path, change: Any, message: str) -> None:
    write(tmp_path)
    change(tmp_path)
    with pytest.raises(CulnigError, match=message.replace("{", r"\{")):
        BlendShort.load(tmp_path, countries=["Spain", "US"])


def test_it_needs_a_folder() -> None:
    with pytest.raises(CulnigError, match="needs BLEnD's data folder"):
        BlendShort.load()


def test_the_real_files_give_sixteen_countries_in_fourteen_languages() -> None:
    folder = real_file("blend/US_questions.csv").parent
    task = BlendShort.load(folder)
    assert set(LANGUAGES) == set(COUNTRIES)
    per_country = Counter(item.country for item in task.items if item.language == "English")
    assert len(per_country) == 16
    assert sum(per_country.values()) + task.unanswered == 16 * 500
    assert per_country["South Korea"] == 475
    assert per_country["Algeria"] == 437
    local = Counter(item.language for item in task.items)
    assert local["Spanish"] == per_country["Spain"] + per_country["Mexico"]
    questions = task.questions("all", TOKENIZER)
    assert len(questions) == 2 * len(task.items)
    assert not any("{q}" in question.prompt for question in questions)
    assert {item.half for item in task.items} == {"neur", "test"}
    for item in task.items[::37]:
        assert all(
            task.score(f"{item.id}/inst-4", "", f"{text}\n") == 100.0 for text in item.answers if normalised(text)
        )
