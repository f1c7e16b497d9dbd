"""Rows come out as they were written, and a file that cannot be read says why in one sentence."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import datasets
import fake_hub
import pytest

from culnig_fast.errors import CulnigError
from culnig_fast.tasks.rows import is_file, read_rows, require_columns

ROWS = [
    {"id": "007", "text": "None", "time": "08:00"},
    {"id": "NA", "text": 'two\nlines, a comma and "quotes"', "time": "2024-05-01"},
    {"id": "1.50", "text": "naïve – ünïcode", "time": "17"},
    {"id": "true", "text": "", "time": "null"},
]


def quoted(row: dict[str, str], separator: str) -> str:
    return separator.join('"' + cell.replace('"', '""') + '"' for cell in row.values())


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix in (".csv", ".tsv"):
        separator = "," if path.suffix == ".csv" else "\t"
        lines = [separator.join(rows[0]), *(quoted(row, separator) for row in rows)]
        path.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
    elif path.suffix == ".jsonl":
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_text(text + "\n\n", encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=4), encoding="utf-8")
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".CSV"])
def test_every_kind_of_file_gives_the_text_that_was_written(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"rows{kind.lower()}", ROWS)
    path = path.rename(tmp_path / f"named{kind}")
    assert read_rows(path) == ROWS
    assert read_rows(str(path)) == ROWS


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".json"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"rows{kind}", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_rows(path) == ROWS


def test_a_folder_with_hub_configurations_is_read_as_the_hub_is(tmp_path: Path) -> None:
    write(tmp_path / "mc.parquet", ROWS)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: mc\n  data_files:\n  - split: test\n    path: mc.parquet\n---\n"
    )
    assert read_rows(tmp_path, config="mc") == ROWS
    with pytest.raises(CulnigError, match="short, split test"):
        read_rows(tmp_path, config="short")


def test_a_hub_s_csv_keeps_what_pandas_takes_for_missing(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "None"}, {"id": "NA", "text": "null"}, {"id": "nan", "text": ""}]
    write(tmp_path / "mc.csv", rows)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: mc\n  data_files:\n  - split: test\n    path: mc.csv\n---\n"
    )
    assert read_rows(tmp_path, config="mc") == rows


def test_json_values_that_are_no_text_keep_their_spelling(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = '{"a": 1.50, "b": 12345678901234567890, "c": {"A": "é"}, "d": true, "e": null, "f": 1e5}'
    path.write_text(row + "\n", encoding="utf-8")
    assert read_rows(path) == [{"a": "1.50", "b": "12345678901234567890", "c": '{"A": "é"}', "d": "true", "f": "1e5"}]


def test_a_line_separator_inside_a_json_string_does_not_end_the_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"a": "one\u2028two\x85three"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_rows(path) == [{"a": "one\u2028two\x85three"}]


def test_reading_leaves_the_global_random_state(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", ROWS)
    random.seed(5)
    expected = random.random()
    random.seed(5)
    read_rows(path)
    assert random.random() == expected


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "empty csv": ("x.csv", b"", "is empty"),
    "csv with a header alone": ("x.csv", b"a,b\n", "no rows"),
    "short row": ("x.csv", b"a,b\n1,2\n3\n", "line 3 .* has 1 cells, the header has 2"),
    "long row": ("x.csv", b"a,b\n1,2,3\n", "3 cells"),
    "open quote": ("x.csv", b'a,b\n1,"2\n', "unexpected end of data"),
    "text after a quote": ("x.csv", b'a,b\n1,"2"3\n', "well-formed csv"),
    "repeated column": ("x.csv", b"a,b,a\n1,2,3\n", "more than one column a"),
    "latin-1": ("x.csv", b"a\ncaf\xe9\n", "not UTF-8"),
    "utf-16": ("x.csv", "a\n1\n".encode("utf-16"), "not UTF-8"),
    "cut jsonl": ("x.jsonl", b'{"a": 1}\n{"a": \n', "line 2 of .* is not JSON"),
    "jsonl without rows": ("x.jsonl", b"\n\n", "no rows"),
    "cut json": ("x.json", b'[{"a": 1}', "is not JSON"),
    "empty json": ("x.json", b"[]", "no rows"),
    "json list of text": ("x.json", b'["a"]', "holds a str"),
    "jsonl of lists": ("x.jsonl", b"[1]\n", "holds a list"),
    "deep json": ("x.json", b"[" * 200_000, "not JSON"),
    "no parquet": ("x.parquet", b"PAR1 and then nothing", "not a readable Parquet"),
    "unknown kind": ("x.xlsx", b"a", "unknown kind"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, case: str) -> None:
    name, content, message = BROKEN[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CulnigError, match=message) as caught:
        read_rows(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gone.csv", "gone.jsonl", "gone.parquet", "a/gone.json", "gone", "/a/b/c"])
def test_a_missing_file_is_refused_by_name(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CulnigError, match="gone|/a/b/c"):
        read_rows(name)


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), ValueError("")])
def test_a_hub_that_does_not_answer_is_one_sentence(monkeypatch: Any, error: Exception) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    fake_hub.answer(monkeypatch, fail)
    with pytest.raises(CulnigError, match=r"owner/name \(mc, split dev\).*give a local file") as caught:
        read_rows("owner/name", config="mc", split="dev")
    assert "\n" not in str(caught.value)


def test_the_hub_is_asked_for_the_configuration_and_split(monkeypatch: Any) -> None:
    asked: list[tuple[object, ...]] = []

    def load(name: str, config: str | None, *, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        return datasets.Dataset.from_dict({"n": [17, 18], "text": ["None", None]})

    fake_hub.answer(monkeypatch, load)
    assert read_rows("owner/name", config="mc", split="dev") == [{"n": "17", "text": "None"}, {"n": "18"}]
    assert asked == [("owner/name", "mc", "dev")]


def test_what_counts_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert is_file("anything/that.jsonl")
    assert not is_file("owner/name")
    assert not is_file(tmp_path / "folder.csv")


def test_missing_columns_and_cells_are_named() -> None:
    rows = [{"a": "1", "b": "2"}, {"a": "3"}]
    require_columns(rows, ("a",), "f.csv")
    with pytest.raises(CulnigError, match=r"f.csv has no column c, d \(found: a, b\)"):
        require_columns(rows, ("a", "c", "d"), "f.csv")
    with pytest.raises(CulnigError, match=r"row 2 of f.csv has no value in column b"):
        require_columns(rows, ("b",), "f.csv")
