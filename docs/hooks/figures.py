"""The page of measured figures, made from the recorded runs in bench/results/ and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"

INTRODUCTION = """\
# Measured figures

Every table on this page is written from a file in `bench/results/` while the site is built; how each figure is
measured, and what is checked before it is timed, stands in `bench/README.md`. A dash is a figure that the run did not
measure.
"""

Table = tuple[Sequence[str], list[Sequence[Any]]]


def page(results: Path = RESULTS) -> str:
    """Markdown of all recorded runs, a section a file in order of name, the machine named in each."""
    sections = []
    for path in sorted(results.rglob("*.json")):
        value = json.loads(path.read_text(encoding="utf-8"))
        title, table = KNOWN.get(path.stem, (path.stem.replace("_", " ").capitalize(), _flat))
        where = path.relative_to(results.parent.parent).as_posix()
        sections.append(f"## {title}\n\n{machine(value)} File: `{where}`.\n\n{markdown(table(value))}\n")
    return "\n".join([INTRODUCTION, *sections])


def machine(value: Any) -> str:
    """One sentence about where and when a run was recorded."""
    found = value.get("environment") if isinstance(value, dict) else None
    if not found:
        return "The file does not record its machine."
    device = found.get("device") or found.get("cpu") or "unnamed device"
    cores = f"{found['cpu_count']} cores, {found['threads']} threads" if found.get("threads") else "threads unknown"
    load = found.get("load_average")
    busy = "" if load is None else f", load {load:.1f}"
    day = str(found.get("time", "")).partition("T")[0] or "day unknown"
    return f"{device} ({cores}{busy}), Python {found.get('python')}, torch {found.get('torch')}, {day}."


def markdown(table: Table) -> str:
    """A table in Markdown, without columns that hold nothing: numbers to the right, about three significant digits."""
    filled = [i for i in range(len(table[0])) if any(row[i] not in (None, "") for row in table[1])]
    if not filled:
        return "The file holds no rows."
    columns, rows = [table[0][i] for i in filled], [[row[i] for i in filled] for row in table[1]]
    numeric = [any(isinstance(row[i], (int, float)) for row in rows) for i in range(len(columns))]
    lines = [columns, ["---:" if right else "---" for right in numeric], *([_cell(x) for x in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _columns(rows: Iterable[dict[str, Any]], wanted: dict[str, str]) -> Table:
    """The wanted keys of rows, under their headings."""
    return list(wanted.values()), [[row.get(key) for key in wanted] for row in rows]


def _flat(value: Any) -> Table:
    """Any file: its rows (`rows`, or its first list of objects) with their plain values; without rows, its facts."""
    lists = [value] if isinstance(value, list) else [value.get("rows"), *value.values()]
    rows = next((one for one in lists if isinstance(one, list) and one and isinstance(one[0], dict)), [])
    if not rows:
        facts = value.items() if isinstance(value, dict) else []
        return ["what", "value"], [[key, one] for key, one in facts if not isinstance(one, (dict, list))]
    keys = dict.fromkeys(key for row in rows for key, one in row.items() if not isinstance(one, (dict, list)))
    return _columns(rows, {key: key.replace("_", " ") for key in keys})


def _attribution(value: Any) -> Table:
    wanted = {
        "shape": "shape",
        "method": "method",
        "samples_per_s": "samples/s",
        "tokens_per_s": "tokens/s",
        "time_over_bare": "time ÷ bare pass",
        "memory_over_bare": "peak memory ÷ bare",
        "roof_percent": "% of roof",
        "note": "note",
    }
    return _columns(value["rows"], wanted)


def _peers(value: Any) -> Table:
    wanted = {
        "shape": "shape",
        "method": "method",
        "library": "library",
        "lines": "lines of user code",
        "median_seconds": "seconds",
        "time_over_bare": "time ÷ bare pass",
        "peak_mb": "peak MB",
        "memory_over_bare": "peak memory ÷ bare",
        "note": "note",
    }
    return _columns(value["rows"], wanted)


def _streaming(value: Any) -> Table:
    weights = value["weights_bytes"] / 1e9
    rows = [{**row, "weights": weights, "peak": row["peak_bytes"] / 1e9} for row in value["rows"]]
    wanted = {
        "method": "method",
        "weights": "GB of weights",
        "least_seconds": "seconds",
        "time_over_recomputed": "time ÷ in memory, recomputed",
        "peak": "peak resident GB",
        "peak_over_weights": "peak ÷ weights",
        "error": "largest difference",
    }
    return _columns(rows, wanted)


def _faults(value: Any) -> Table:
    """Every part's facts; of a list how long it is."""
    rows = []
    for part, facts in value["parts"].items():
        for name, one in facts.items():
            rows.append([part, name.replace("_", " "), len(one) if isinstance(one, (list, dict)) else one])
    return ["part", "what", "value"], rows


def _fuzz(value: Any) -> Table:
    """What every reader made of its damaged files."""
    found = value["parts"]["fuzz"]["readers"]
    rows = [
        [name, *(count[key] for key in ("examples", "refused", "read", "findings"))] for name, count in found.items()
    ]
    return ["reader", "damaged files", "refused", "read", "findings"], rows


def _fault_rows(value: Any) -> Table:
    """Every way in which a part was disturbed, and how far the totals are from those of one undisturbed process."""
    rows: list[list[Any]] = []
    for part, facts in value["parts"].items():
        for row in facts["rows"]:
            if part == "ranks":
                what = f"{row['processes']} processes, {row['divided']} divided, one killed"
                told = f"named after {row['seconds_to_end']} s"
                told += (
                    ", restart equal to the byte" if row["restarted_bytes_equal_undisturbed"] else ", restart differs"
                )
                rows.append([what, told, row["difference_from_one_process"]])
            else:
                rows.append([f"out of memory: {row['where']}", f"{row['halvings']} halvings", row["difference"]])
    return ["what", "outcome", "difference ÷ largest total"], rows


def _selection(value: Any) -> Table:
    largest = max(row["neurons"] for row in value["rows"])
    rows = [{**row, "ms": 1e3 * row["seconds"]} for row in value["rows"] if row["neurons"] in (largest, 3_200_000)]
    wanted = {
        "neurons": "neurons",
        "job": "job",
        "implementation": "implementation",
        "threads": "threads",
        "ms": "ms",
        "over_read_once": "× reading once",
        "exact": "equals the full sort",
    }
    return _columns(rows, wanted)


def _demo(value: Any) -> Table:
    rows = value["tables"]["main"]
    labels = list(rows[0]["cells"])
    cells = [[row["row"], row["neurons"], *(row["cells"][label]["value"] for label in labels)] for row in rows]
    return ["accuracy", "neurons", *labels], cells


def _finetuning(value: Any) -> Table:
    rows = []
    for number, one in enumerate(value["comparisons"], 1):
        for row in one["table"]["rows"]:
            cells = [f"{name} {cell['value']:.1f}" for name, cell in row["cells"].items() if cell]
            rows.append([number, one["target"], row["row"], ", ".join(cells), one["seconds"]])
    return ["comparison", "trained on", "modules", "accuracy", "seconds of the whole comparison"], rows


def _chain(value: Any) -> Table:
    wanted = {"stage": "stage", "samples": "samples", "questions": "questions", "seconds": "seconds", "peak_mib": "MiB"}
    return _columns(value, wanted)


KNOWN: dict[str, tuple[str, Callable[[Any], Table]]] = {
    "attribution_fused": ("Scoring, beside other ways", _attribution),
    "demo": ("The embedded model's run", _demo),
    "faults_fuzz": ("Damaged files", _fuzz),
    "faults_kills": ("A run that is killed again and again", _faults),
    "faults_ranks": ("A process that dies, memory that runs out", _fault_rows),
    "finetune": ("Fine-tuning of chosen modules", _finetuning),
    "meaning": ("Scores against brute force", _flat),
    "peers": ("Scoring, beside other libraries", _peers),
    "real_chain": ("Every stage on files of full size, random weights", _chain),
    "selection": ("Selection", _selection),
    "streaming": ("A checkpoint on disk, a layer at a time", _streaming),
    "streaming_memory": ("A checkpoint on disk: least memory", _streaming),
    "streaming_time": ("A checkpoint on disk: least time", _streaming),
}
"""Title and table of the files that have their own; any other file is shown row by row."""


def on_files(files: Any, config: Any) -> Any:
    """Add the page to what is built."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "figures.md", content=page()))
    return files
