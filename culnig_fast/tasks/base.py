"""What a benchmark is to the rest of the program, and how its rows are read.

To add one: write `tasks/<name>.py` with a class that has `name`, `splits` and `questions(split, tokenizer)`, and a
function that loads it with `read_rows` and `require_columns`; then name it in `tasks/registry.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from culnig_fast.errors import CulnigError
from culnig_fast.questions import Question

Row = Mapping[str, str]

_READERS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


class Task(Protocol):
    """A benchmark loaded into memory."""

    name: str
    splits: tuple[str, ...]

    def questions(self, split: str, tokenizer: Any) -> list[Question]:
        """The questions of a split, as the model behind the tokenizer is to see them."""
        ...


def read_rows(source: str | Path, *, config: str | None = None, split: str = "test") -> list[dict[str, str]]:
    """Rows of a local file, or of a data set on the hub, every cell as text.

    Args:
        source: a csv, tsv, jsonl, json or parquet file, or a hub id such as `nayeon212/BLEnD`.
        config, split: which part of a hub data set.

    Raises:
        CulnigError: the file is missing, of an unknown kind or cannot be parsed, or the hub cannot be reached.
    """
    path = Path(source)
    if path.suffix.lower() in _READERS or path.exists():
        return _read_file(path)
    if str(source).count("/") != 1 or str(source).startswith((".", "/")):
        raise CulnigError(f"no file {source}; give a csv, tsv, jsonl, json or parquet file, or a hub id")
    import datasets

    try:
        loaded = datasets.load_dataset(str(source), config, split=split)
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise CulnigError(
            f"cannot load {source} from the hub ({type(error).__name__}: {str(error).splitlines()[0][:200]}); "
            "download it once and give the local file"
        ) from error
    return [_as_text(row) for row in loaded]


def require_columns(rows: list[dict[str, str]], columns: Iterable[str], source: str | Path) -> None:
    """Raise CulnigError, naming what is missing and what is there, unless there are rows with all the columns."""
    if not rows:
        raise CulnigError(f"{source} has no rows; is it the right file?")
    missing = [column for column in columns if column not in rows[0]]
    if missing:
        raise CulnigError(
            f"{source} has no column {', '.join(missing)}; it has {', '.join(map(str, rows[0]))}; is it the right file?"
        )


def check_split(split: str, splits: tuple[str, ...], name: str) -> None:
    """Raise CulnigError, listing the splits, unless `split` is one of them."""
    if split not in splits:
        raise CulnigError(f"{name} has no split {split!r}; choose from {', '.join(splits)}")


def _read_file(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise CulnigError(f"no file {path}; check the path")
    kind = _READERS.get(path.suffix.lower())
    if kind is None:
        raise CulnigError(f"{path} is of an unknown kind; give a csv, tsv, jsonl, json or parquet file")
    if not os.access(path, os.R_OK):
        raise CulnigError(f"{path} cannot be read; check its permissions")
    import pandas

    try:
        if kind == "csv":
            separator = "\t" if path.suffix.lower() == ".tsv" else ","
            # Text such as "None" and "NA" is an answer here, never a missing value.
            frame = pandas.read_csv(
                path, sep=separator, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8-sig"
            )
        elif kind == "json":
            lines = path.suffix.lower() == ".jsonl"
            frame = pandas.read_json(path, lines=lines, dtype=False, convert_dates=False, encoding="utf-8-sig")
        else:
            frame = pandas.read_parquet(path)
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise CulnigError(f"{path} cannot be parsed as {path.suffix} ({str(error).splitlines()[0][:200]})") from error
    return [_as_text(row) for row in frame.to_dict("records")]


def _as_text(row: Mapping[Any, Any]) -> dict[str, str]:
    return {str(key): value if isinstance(value, str) else str(value) for key, value in row.items()}
