"""Small whole files in the formats of the benchmarks, made here."""

from __future__ import annotations

import gzip
import json
from typing import Any

from harness.faults.readers import Reader, as_csv, as_jsonl, as_parquet, task_reader

_TOPICS = as_csv([{"ID": f"T-{i}", "Topic": topic, "Question": "?"} for i, topic in enumerate(("Food", "Family"))])


def task_readers() -> tuple[Reader, ...]:
    """A reader for every benchmark and layout."""
    blend, plain, choices = _blend(), _plain(), _commonsense()
    parquet = {"x.parquet": as_parquet(blend), "US_questions.csv": _TOPICS}
    return (
        task_reader("blend jsonl", "blend", {"x.jsonl": as_jsonl(blend), "US_questions.csv": _TOPICS}, "x.jsonl"),
        task_reader("blend csv", "blend", {"x.csv": as_csv(blend), "US_questions.csv": _TOPICS}, "x.csv"),
        task_reader("blend parquet", "blend", parquet, "x.parquet", 0.1, ("US_questions.csv",)),
        task_reader("blend short answers", "blend_short", _short(), None, countries=["Spain", "US"]),
        task_reader("country_rc", "country_rc", {"x.json": json.dumps(_templates()).encode()}, "x.json"),
        task_reader("culturalbench", "culturalbench", {"x.csv": as_csv(_cultural())}, "x.csv"),
        task_reader("normad", "normad", {"x.csv": as_csv(_normad())}, "x.csv"),
        task_reader("commonsenseqa", "commonsenseqa", {"x.jsonl": as_jsonl(choices)}, "x.jsonl"),
        task_reader("commonsenseqa, original", "commonsenseqa", {"x.jsonl": as_jsonl(_stems())}, "x.jsonl"),
        task_reader("qnli tsv", "qnli", {"x.tsv": as_csv(_qnli(), "\t")}, "x.tsv"),
        task_reader("mrpc txt", "mrpc", {"x.txt": as_csv(_mrpc(), "\t")}, "x.txt"),
        task_reader("plain json", "plain", {"x.json": json.dumps(plain).encode()}, "x.json"),
        task_reader("plain tsv", "plain", {"x.tsv": as_csv(plain, "\t")}, "x.tsv"),
        task_reader("worldvaluesbench", "worldvaluesbench", _survey(), None, 0.15),
    )


def _blend() -> list[dict[str, Any]]:
    rows = []
    for i in range(4):
        options = {"A": f"tea {i}", "B": "rain", "C": "None", "D": "17"}
        shown = "\n".join(f"{letter}. {text}" for letter, text in options.items())
        rows.append(
            {
                "MCQID": f"T-{i % 2}_{i}",
                "ID": f"T-{i % 2}",
                "country": ("UK", "South_Korea")[i // 2],
                "prompt": f"What is usual? Without any explanation, choose only one letter.\n\n{shown}\n\nAnswer:",
                "choices": json.dumps(options),
                "answer_idx": "ABCD"[i],
            }
        )
    return rows


def _plain() -> list[dict[str, Any]]:
    return [{"id": str(i), "group": "ab"[i % 2], "prompt": f'Say "{i}"', "answer": "AB"[i % 2]} for i in range(3)]


def _templates() -> list[dict[str, Any]]:
    texts = ("She went to {country}.", "From {country_dummy} he came to {country}. {country} was cold.")
    return [{"id": str(i), "context": text, "question": "Where?"} for i, text in enumerate(texts)]


def _cultural() -> list[dict[str, Any]]:
    options = {f"prompt_option_{letter}": f"{letter} word" for letter in "abcd"}
    head = {"question_idx": "0", "prompt_question": "What is usual?\n(i) tea"}
    return [
        {"data_idx": str(i), **head, **options, "answer": "ABCD"[i], "country": ("Türkiye", "UK")[i % 2]}
        for i in range(4)
    ]


def _normad() -> list[dict[str, Any]]:
    story = 'He said "no, thanks",\nand left.'
    return [
        {"ID": str(i), "Country": "new_zealand", "Story": story, "Gold Label": label, "Axis": "Eating"}
        for i, label in enumerate(("yes", "no", "neutral", "yes"))
    ]


def _commonsense() -> list[dict[str, Any]]:
    return [
        {
            "id": f"{i:032x}",
            "question": "What is where?",
            "choices": {"label": list("ABCDE"), "text": ["bank", "NA", "None", "mall", "5"]},
            "answerKey": "EB"[i],
        }
        for i in range(2)
    ]


def _stems() -> list[dict[str, Any]]:
    choices = [{"label": letter, "text": f"word {letter}"} for letter in "ABCDE"]
    return [{"id": "1", "answerKey": "C", "question": {"stem": "What is where?", "choices": choices}}]


def _qnli() -> list[dict[str, Any]]:
    labels = ("entailment", "not_entailment")
    return [{"index": str(i), "question": "Who?", "sentence": "She did.", "label": labels[i]} for i in range(2)]


def _mrpc() -> list[dict[str, Any]]:
    return [
        {"Quality": str(i), "#1 ID": "10", "#2 ID": f"1{i}", "#1 String": "Rain fell.", "#2 String": "Snow fell."}
        for i in range(2)
    ]


def _short() -> dict[str, bytes]:
    entry = {
        "question": "¿Qué?",
        "en_question": "What?",
        "annotations": [{"answers": ["pan"], "en_answers": ["bread"], "count": 3}],
        "idks": {"idk": 0, "no-answer": 0, "not-applicable": 1},
    }
    data = json.dumps({"T-0": entry, "T-1": entry}).encode()
    prompts = as_csv(
        [
            {"id": name, "English": "Brief: {q}", "G-Translation": "", "Translation": "Breve: {q}"}
            for name in ("inst-4", "pers-3")
        ]
    )
    return {
        "annotations/Spain_data.json": data,
        "annotations/US_data.json.gz": gzip.compress(data),
        "prompts/Spain_prompts.csv": prompts,
        "prompts/US_prompts.csv": prompts,
        "US_questions.csv": _TOPICS,
    }


def _survey() -> dict[str, bytes]:
    names = ("Q1", "Q2", "Q3")
    metadata = {
        name: {
            "question": f"From 1 to 4, 1 meaning 'least' and 4 meaning 'most', how much {name}?",
            "use_case": "value",
            "answer_scale_min": 1,
            "answer_scale_max": 4,
        }
        for name in names
    }
    codebook = {name: {"choices": {"1": "least", "2": "little", "3": "much", "4": "most"}} for name in names}
    people = [{"D_INTERVIEW": str(100 + i), "B_COUNTRY": ("Iran", "Mexico")[i % 2]} for i in range(24)]
    values = [
        {"D_INTERVIEW": str(100 + i), **{n: str(1 + (i + k) % 4) for k, n in enumerate(names)}} for i in range(24)
    ]
    return {
        "full_value_qa.tsv": as_csv(values, "\t"),
        "full_demographic_qa.tsv": as_csv(people, "\t"),
        "question_metadata.json": json.dumps(metadata).encode(),
        "codebook.json": json.dumps(codebook).encode(),
    }
