"""Answers of the World Values Survey as WorldValuesBench tabulates them: counted per country, question and value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from culnig_fast.errors import CulnigError

PARTICIPANT, COUNTRY = "D_INTERVIEW", "B_COUNTRY"

_CHUNK = 20_000
"""Rows held at once: 240 columns of the full table would take more than a gigabyte as text."""


@dataclass(frozen=True, eq=False)
class AnswerCounts:
    """How often each value was answered.

    Attributes:
        countries: names as the table spells them, in order of appearance.
        counts: question → int64 [countries, values of its scale].
        off_scale: answers left out because the question's scale does not have them.
    """

    countries: tuple[str, ...]
    counts: Mapping[str, np.ndarray]
    off_scale: int


def count_answers(values: Path, demographics: Path, scales: Mapping[str, tuple[int, int]]) -> AnswerCounts:
    """Read both tables in chunks.

    Args:
        values: participant and one column a question; integers or empty.
        demographics: participant and country.
        scales: question → least and greatest value.

    Raises:
        CulnigError: an unreadable table, a missing column, a participant without a country or listed twice, an
            answer that is no integer.
    """
    country_of: dict[str, int] = {}
    names: dict[str, int] = {}
    for chunk in _chunks(demographics, [PARTICIPANT, COUNTRY], text=(PARTICIPANT, COUNTRY)):
        for who, country in zip(chunk[PARTICIPANT], chunk[COUNTRY], strict=True):
            if who in country_of:
                raise CulnigError(f"{demographics} lists participant {who} twice; keep one row of each")
            if not country:
                raise CulnigError(f"{demographics} has no {COUNTRY} for participant {who}; fill it or drop the row")
            country_of[who] = names.setdefault(country, len(names))
    counts = {name: np.zeros((len(names), high - low + 1), dtype=np.int64) for name, (low, high) in scales.items()}
    off_scale, seen = 0, set[str]()
    for chunk in _chunks(values, [PARTICIPANT, *scales], text=(PARTICIPANT,)):
        rows = np.array([_row_of(who, country_of, values, demographics) for who in chunk[PARTICIPANT]])
        for who in chunk[PARTICIPANT]:
            if who in seen:
                raise CulnigError(f"{values} lists participant {who} twice; keep one row of each")
            seen.add(who)
        for name, (low, high) in scales.items():
            answers = _numbers(chunk[name], name, values)
            given = ~np.isnan(answers)
            good = given & (answers >= low) & (answers <= high)
            off_scale += int(given.sum() - good.sum())
            np.add.at(counts[name], (rows[good], answers[good].astype(np.int64) - low), 1)
    return AnswerCounts(tuple(names), counts, off_scale)


def _chunks(path: Path, columns: Sequence[str], text: Sequence[str]) -> Iterator[Any]:
    import csv

    import pandas as pd

    try:
        if path.suffix.lower() == ".parquet":
            table = pd.read_parquet(path)
            _require(path, columns, table.columns)
            for name in text:
                table[name] = table[name].astype(str)
            yield table
            return
        separator = "," if path.suffix.lower() == ".csv" else "\t"
        options: dict[str, Any] = {"sep": separator, "encoding": "utf-8-sig"}
        if separator == "\t":
            options["quoting"] = csv.QUOTE_NONE
        _require(path, columns, pd.read_csv(path, nrows=0, **options).columns)
        # Only an empty cell is missing: a text such as NA is reported, not dropped.
        with pd.read_csv(
            path, usecols=list(columns), dtype={name: str for name in text}, keep_default_na=False,
            na_values={name: [""] for name in columns if name not in text}, chunksize=_CHUNK, **options,
        ) as reader:  # fmt: skip
            yield from reader
    except OSError as error:
        raise CulnigError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except (ValueError, pd.errors.ParserError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise CulnigError(f"{path} is not a readable table ({reason[:200]}); was it cut off?") from error


def _require(path: Path, columns: Sequence[str], found: Any) -> None:
    missing = [name for name in columns if name not in set(found)]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise CulnigError(f"{path} has no column {', '.join(missing[:5])}{more}; is it the right file?")


def _row_of(who: str, country_of: Mapping[str, int], values: Path, demographics: Path) -> int:
    if who not in country_of:
        raise CulnigError(f"participant {who} of {values} is not in {demographics}; are they of one release?")
    return country_of[who]


def _numbers(column: Any, name: str, path: Path) -> np.ndarray:
    import pandas as pd

    try:
        numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    except (OverflowError, TypeError, ValueError) as error:
        raise CulnigError(f"{path} has an answer in column {name} that is no number of a scale ({error})") from error
    given = ~column.isna().to_numpy()
    bad = np.flatnonzero(given & (np.isnan(numbers) | (numbers != np.floor(numbers))))
    if bad.size:
        value = column.iloc[int(bad[0])]
        raise CulnigError(f"{path} has the answer {str(value)!r} in column {name}; answers are integers or empty")
    return numbers
