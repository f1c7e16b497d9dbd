"""DataFrames of analyses as csv files that read back the same, and what plots ask of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from culnig_fast.errors import CulnigError
from culnig_fast.files import write_text

if TYPE_CHECKING:
    import pandas as pd


def save_frame(frame: pd.DataFrame, path: str | Path, overwrite: bool = False) -> None:
    """Write a csv file, every number with all its digits and NaN as an empty cell; atomic.

    Raises:
        CulnigError: the file exists and `overwrite` is false, or it cannot be written.
    """
    write_text(path, frame.to_csv(index=False, lineterminator="\n"), overwrite)


def load_frame(path: str | Path) -> pd.DataFrame:
    """Read what `save_frame` wrote: the same numbers to the last bit, and a name "NA" stays a name.

    Raises:
        CulnigError: the file is missing or no csv.
    """
    import pandas as pd

    try:
        # Cells as text first: how exactly pandas reads a number depends on its version.
        text = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
        return pd.DataFrame({name: _column(text[name].tolist()) for name in text.columns})
    except OSError as error:
        raise CulnigError(f"cannot read {path}: {error.strerror}; check the path") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise CulnigError(f"{path} is not a csv file of an analysis ({error}); make the analysis again") from error


def _column(cells: list[str]) -> list[Any]:
    """Truth values, whole numbers or numbers where all cells are such, empty ones being NaN; else the text."""
    if cells and set(cells) <= {"True", "False"}:
        return [cell == "True" for cell in cells]
    for read in (int, lambda cell: float(cell) if cell else float("nan")):
        try:
            return [read(cell) for cell in cells]
        except ValueError:
            continue
    return cells


def need(frame: pd.DataFrame, columns: Iterable[str], name: str) -> None:
    """Raise CulnigError unless the frame has some rows and all the columns."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise CulnigError(f"the analysis {name} has no column {missing[0]!r}; make it again, or draw another figure")
    if not len(frame):
        raise CulnigError(f"the analysis {name} has no rows, so there is nothing to draw; leave its figure out")
