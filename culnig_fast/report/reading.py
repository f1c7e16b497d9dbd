"""What is in a run's folder, as far as the page shows it: missing is None or empty, damaged is refused."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from culnig_fast.errors import CulnigError
from culnig_fast.files import read_json
from culnig_fast.neuron_sets import NeuronSet
from culnig_fast.tables.table import Cell, Table

MANIFEST = "manifest.json"
FORMAT = "culnig_fast.run/1"


@dataclass(frozen=True)
class RunFiles:
    """A run's folder, read.

    Attributes:
        folder: the run's.
        facts: what `run.json` says was run, or None.
        sets: neuron sets by name, in the order in which they are shown.
        tables: as `tables.json` has them, then those that are csv files alone.
        task_notes: sentences about a task, by its label.
        stages: (name, seconds) of each finished stage, in the order in which they were done first.
        figures: paths of the svg files, by name.
        analyses: paths of the csv files of `analysis/`, by name.
        csvs: paths of every csv to be offered, by their path within the folder.
        instances: the neurons and questions of `analysis/instances.json`, or None.
    """

    folder: Path
    facts: dict[str, Any] | None
    sets: dict[str, NeuronSet]
    tables: tuple[Table, ...]
    task_notes: dict[str, list[str]]
    stages: tuple[tuple[str, float], ...]
    figures: dict[str, Path]
    analyses: dict[str, Path]
    csvs: dict[str, Path]
    instances: dict[str, Any] | None


def read_run(folder: str | Path) -> RunFiles:
    """Read what a run left in its folder.

    Raises:
        CulnigError: the folder is not a run's, or one of its files is damaged; names the file.
    """
    folder = Path(folder)
    _check(folder)
    tables, notes = _tables(folder / "tables")
    analyses = _files(folder / "analysis", ".csv")
    csvs = {f"{part}/{path.name}": path for part in ("tables", "analysis") for path in _csv_paths(folder / part)}
    return RunFiles(
        folder,
        _optional(folder / "run.json", dict),
        _sets(folder / "neurons"),
        tables,
        notes,
        _stages(folder / "log.jsonl"),
        _files(folder / "figures", ".svg"),
        analyses,
        csvs,
        _instances(folder / "analysis" / "instances.json"),
    )


def set_rank(name: str) -> tuple[int, str, int]:
    """Where a neuron set stands among the others: general, its parts, countries, other methods, random ones."""
    stem, _, number = name.rpartition("-")
    if stem == "random" and number.isdecimal():
        return 4, stem, int(number)
    order = {"general": 0, "mlp": 1, "attention": 1}
    return order.get(name, 2 if name.startswith("specific-") else 3), name, 0


def country_of(name: str) -> str | None:
    """The country whose specific set this is, or None; the wider sets that kinship is drawn from are none."""
    return name.removeprefix("specific-").replace("_", " ") if name.startswith("specific-") else None


def read_text(path: Path) -> str:
    """A file's text; CulnigError when it cannot be read as UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise CulnigError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    except UnicodeDecodeError as error:
        raise CulnigError(f"{path} is not UTF-8 text ({error.reason}); delete it and continue the run") from error


def csv_rows(path: Path) -> list[list[str]]:
    """The rows of a csv file, its header first; CulnigError when it cannot be read as such."""
    try:
        return list(csv.reader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise CulnigError(f"{path} is not a csv file ({error}); delete it and continue the run") from error


def _check(folder: Path) -> None:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise CulnigError(
            f"{folder} is not the folder of a run (it has no {MANIFEST}); give the one that culnig-fast run wrote to"
        )
    value = read_json(manifest)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise CulnigError(f"{manifest} is not the manifest of a run ({FORMAT}); give the folder of a run")


def _optional(path: Path, kind: type) -> Any:
    if not path.is_file():
        return None
    value = read_json(path)
    if not isinstance(value, kind):
        raise CulnigError(f"{path} holds no JSON object; delete it and continue the run")
    return value


def _csv_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.csv")) if folder.is_dir() else []


def _files(folder: Path, ending: str) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob(f"*{ending}"))} if folder.is_dir() else {}


def _sets(folder: Path) -> dict[str, NeuronSet]:
    found = _files(folder, ".json")
    return {name: NeuronSet.load(found[name]) for name in sorted(found, key=set_rank)}


def _tables(folder: Path) -> tuple[tuple[Table, ...], dict[str, list[str]]]:
    summary = _optional(folder / "tables.json", dict) or {}
    try:
        tables = [Table.from_dict(value) for value in summary.get("tables", [])]
        notes = {str(label): [str(note) for note in given] for label, given in summary.get("tasks", {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CulnigError(f"{folder / 'tables.json'} is damaged ({error!r}); delete it and continue the run") from error
    known = {table.name for table in tables}
    for name, path in _files(folder, ".csv").items():
        if name not in known:
            table = _table_from_csv(name, csv_rows(path))
            tables += [] if table is None else [table]
    return tuple(tables), notes


def _table_from_csv(name: str, lines: list[list[str]]) -> Table | None:
    """The table that `to_csv` wrote, or None when the file is of another form."""
    whole = len({len(line) for line in lines}) == 1
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]] if whole else []
    if not rows or not {"row", "neurons", "column", "value"} <= set(rows[0]):
        return None
    columns = tuple(dict.fromkeys(row["column"] for row in rows))
    cells: dict[tuple[str, str], Cell] = {}
    try:
        for row in rows:
            numbers: dict[str, Any] = {
                key: float(row[key]) for key in ("low", "high", "sd", "p", "p_holm") if row.get(key)
            }
            cells[row["row"], row["column"]] = Cell(float(row["value"]), bold=row.get("bold") == "True", **numbers)
        sizes = {row["row"]: int(row["neurons"]) if row["neurons"] else None for row in rows}
    except (TypeError, ValueError):
        return None
    made = ((row, size, tuple(cells.get((row, column)) for column in columns)) for row, size in sizes.items())
    title = "Published figures and this run's" if name == "published" else name
    return Table(name, title, columns, tuple(made))


def _stages(path: Path) -> tuple[tuple[str, float], ...]:
    """The last time of each stage; a line that a killed process left cut off is passed over."""
    if not path.is_file():
        return ()
    seconds: dict[str, float] = {}
    for line in read_text(path).splitlines():
        try:
            entry = json.loads(line)
            name, taken = str(entry["stage"]), float(entry["seconds"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
        if math.isfinite(taken):
            seconds[name] = taken
    return tuple(seconds.items())


def _instances(path: Path) -> dict[str, Any] | None:
    value = _optional(path, dict)
    if value is None:
        return None
    if not isinstance(value.get("neurons"), list) or not isinstance(value.get("questions"), dict):
        raise CulnigError(f"{path} lacks its neurons or questions; delete it and continue the run")
    checked: dict[str, Any] = value
    return checked
