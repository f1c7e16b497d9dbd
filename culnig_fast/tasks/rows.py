"""Rows of a file or of a data set on the hub, every cell as the text that was written there.

Local text files are read with the standard library: readers that guess types turn the answer `None` into a
missing value, `2024-05-01` into a time and `17` into 17.0 as soon as a row lacks it. Parquet and the hub go
through libraries: there the files carry their types.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from culnig_fast.errors import CulnigError
from culnig_fast.files import parse_json

Row = dict[str, str]

FILE_KINDS = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet")
"""Endings of the local files that can be read; .txt means tab-separated, as some benchmarks name such files."""


class _QuotedTabs(csv.excel_tab):
    strict = True


class _BareTabs(_QuotedTabs):
    quoting = csv.QUOTE_NONE


def read_rows(
    source: str | Path, *, config: str | None = None, split: str = "test", quoted_tabs: bool = True
) -> list[Row]:
    """Rows in file order, every cell as text; a JSON null or an empty Parquet cell is left out of its row.

    Args:
        source: a csv, tsv, txt, jsonl, json or parquet file, a hub id such as `nayeon212/BLEnD`, or a local copy
            of a hub repository (a folder).
        config: which configuration of a hub data set.
        split: which split of a hub data set.
        quoted_tabs: whether quotes in a tab-separated file enclose cells; in GLUE's files they are plain text.

    Raises:
        CulnigError: the source is missing, of an unknown kind, unreadable, not UTF-8, malformed or without
            rows, or the hub cannot be reached.
    """
    if is_file(source):
        rows = _read_file(Path(source), quoted_tabs)
    elif Path(source).is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        rows = _read_hub(str(source), config, split)
    else:
        kinds = ", ".join(FILE_KINDS)
        raise CulnigError(f"no file or folder {source}; give one of {kinds}, or a hub id owner/name")
    if not rows:
        raise CulnigError(f"{source} has no rows; is it the right file?")
    return rows


def is_file(source: str | Path) -> bool:
    """Whether `source` means a local file: it exists as one, or its ending says so."""
    path = Path(source)
    return path.is_file() or (path.suffix.lower() in FILE_KINDS and not path.is_dir())


def require_columns(rows: Sequence[Row], columns: Iterable[str], source: str | Path) -> None:
    """Check that every row has a value in every column.

    Raises:
        CulnigError: names the missing columns and those found, or the first row without a value.
    """
    columns = tuple(columns)
    found = dict.fromkeys(name for row in rows for name in row)
    missing = [column for column in columns if column not in found]
    if missing:
        raise CulnigError(
            f"{source} has no column {', '.join(missing)} (found: {', '.join(found)}); is it the right file?"
        )
    for number, row in enumerate(rows, 1):
        for column in columns:
            if column not in row:
                raise CulnigError(f"row {number} of {source} has no value in column {column}; fill it or drop the row")


def _read_file(path: Path, quoted_tabs: bool) -> list[Row]:
    kind = path.suffix.lower()
    if kind not in FILE_KINDS:
        raise CulnigError(f"{path} is of an unknown kind; give one of {', '.join(FILE_KINDS)}")
    try:
        if kind == ".parquet":
            return _read_parquet(path)
        # utf-8-sig drops the mark that some spreadsheet programs put in front of the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as handle:
            if kind == ".csv":
                return _read_table(csv.reader(handle, strict=True), path)
            if kind in (".tsv", ".txt"):
                dialect = _QuotedTabs if quoted_tabs else _BareTabs
                return _read_table(csv.reader(handle, dialect), path)
            return _read_json(handle.read(), path)
    except OSError as error:
        raise CulnigError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except UnicodeDecodeError as error:
        raise CulnigError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        raise CulnigError(f"{path} is not a well-formed {kind[1:]} file ({error}); was it cut off?") from error


def _read_table(reader: Any, path: Path) -> list[Row]:
    header = next(reader, None)
    if header is None:
        raise CulnigError(f"{path} is empty; is it the right file?")
    repeated = {name for name in header if name and header.count(name) > 1}
    if repeated:
        raise CulnigError(f"{path} has more than one column {', '.join(sorted(repeated))}; rename or drop one")
    rows = []
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(header):
            raise CulnigError(
                f"the row that ends at line {reader.line_num} of {path} has {len(cells)} cells, the header "
                "has "
                f"{len(header)}; was the file cut off, or is a quote missing?"
            )
        rows.append(dict(zip(header, cells, strict=True)))
    return rows


def _read_json(text: str, path: Path) -> list[Row]:
    whole = path.suffix.lower() == ".json"
    rows = []
    # splitlines() would also cut at the Unicode line separators that a JSON string may hold unescaped.
    for line, chunk in enumerate([text] if whole else text.split("\n"), 1):
        if not chunk.strip():
            continue
        where = "" if whole else f"line {line} of "
        # A number keeps the spelling of the file.
        value = parse_json(
            chunk,
            f"{where}{path} is not JSON",
            "was the file cut off?",
            parse_int=str,
            parse_float=str,
            parse_constant=str,
        )
        for record in value if whole and isinstance(value, list) else [value]:
            if not isinstance(record, dict):
                raise CulnigError(
                    f"{path} holds a {type(record).__name__} where a row was expected; give a list of objects"
                )
            rows.append(_as_row(record))
    return rows


def _read_parquet(path: Path) -> list[Row]:
    if not path.is_file():
        raise CulnigError(f"cannot read {path}: no such file; check the path")
    from pyarrow import parquet

    try:
        return _as_rows(parquet.ParquetFile(path).read().to_pydict())
    except Exception as error:  # pyarrow raises unrelated types for a damaged file
        raise CulnigError(f"{path} is not a readable Parquet file ({_first_line(error)})") from error


def _read_hub(source: str, config: str | None, split: str) -> list[Row]:
    import datasets

    try:
        builder = datasets.load_dataset_builder(source, config)
        # An answer may be the word "None"; by default a CSV file's reader takes it for an empty cell.
        options = {"keep_default_na": False} if hasattr(builder.config, "keep_default_na") else {}
        return _as_rows(datasets.load_dataset(source, config, split=split, **options).to_dict())
    except Exception as error:  # the hub client raises a dozen unrelated types
        part = f"{config}, split {split}" if config else f"split {split}"
        raise CulnigError(
            f"cannot load {source} ({part}) with datasets: {_first_line(error)}; check the name and the "
            "network, or "
            "give a local file"
        ) from error


def _as_rows(columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Rows of a table read a column at a time: row by row is 20 times slower."""
    return [_as_row(dict(zip(columns, cells, strict=True))) for cells in zip(*columns.values(), strict=True)]


def _as_row(record: Mapping[str, Any]) -> Row:
    return {str(name): _as_text(value) for name, value in record.items() if value is not None}


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (dict, list, bool)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
