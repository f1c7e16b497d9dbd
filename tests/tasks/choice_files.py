"""Small files of our own in the formats of the multiple-choice benchmarks, traps included."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets


def write_csv(path: Path, rows: Sequence[Mapping[str, str]], bom: bool = True) -> Path:
    with path.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_bare_tsv(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """Tabs and no quoting at all, as GLUE's files."""
    lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return path


def write_any(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    if path.suffix == ".csv":
        return write_csv(path, rows)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(list(rows)).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def cultural_rows() -> list[dict[str, str]]:
    """Three rows of one country, two of another, alternating; traps: `None`, equal options, newlines, spaces."""
    rows = []
    for i, country in enumerate(["United Kingdom", "Türkiye", "United Kingdom", "Türkiye", "United Kingdom"]):
        options = ["tea, with milk", 'the "best" one', f"option {i}", "None"]
        if i == 3:
            options[3] = options[0]
        row = {
            "data_idx": str(i),
            "question_idx": str(i),
            "prompt_question": f"What is usual?\n(i) tea\n(ii) rain {i}  ",
        }
        row |= {f"prompt_option_{letter}": text for letter, text in zip("abcd", options, strict=True)}
        rows.append(row | {"answer": "DABDC"[i], "country": country})
    return rows


def normad_row(number: int, country: str, label: str) -> dict[str, str]:
    return {
        "ID": str(number),
        "Country": country,
        "Background": "secret background",
        "Axis": "Eating",
        "Subaxis": "‘taarof’",
        "Value": "secret value",
        "Rule-of-Thumb": "secret rule",
        "Story": f'Person {number} said "no, thanks",\nand left.',
        "Explanation": "secret explanation",
        "Gold Label": label,
    }


def commonsense_rows() -> list[dict[str, Any]]:
    texts = [["bank", "NA", "None", "mall", "mall"], ["1", "2", "3", "4", "5"]]
    return [
        {
            "id": f"{i:032x}",
            "question": "What is where?",
            "question_concept": "thing",
            "choices": {"label": list("ABCDE"), "text": options},
            "answerKey": "EB"[i],
        }
        for i, options in enumerate(texts)
    ]


def qnli_rows() -> list[dict[str, str]]:
    return [
        {"index": "0", "question": 'Who said "go?', "sentence": 'She said "go', "label": "entailment"},
        {"index": "1", "question": "Where is Zürich?", "sentence": '"', "label": "not_entailment"},
        {"index": "2", "question": "None", "sentence": "It rained.", "label": "not_entailment"},
    ]


def mrpc_rows() -> list[dict[str, str]]:
    return [
        {"Quality": "1", "#1 ID": "10", "#2 ID": "11", "#1 String": 'He said "yes', "#2 String": 'He agreed"'},
        {"Quality": "0", "#1 ID": "10", "#2 ID": "12", "#1 String": "Rain fell.", "#2 String": "Snow fell."},
    ]
